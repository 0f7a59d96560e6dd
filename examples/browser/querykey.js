// Apply an adapter that querykey saved, in the browser or in node; no dependencies.
//
//   import { load } from "./querykey.js";
//   const adapter = await load("run");         // a folder of `querykey adapt` or `Adapter.save`
//   const z = adapter.transform(x);            // Float32Array of length 1, adapter.dim numbers
//   adapter.transform(x, { dim: 64 });         // a smaller size, one of adapter.dims
//   const code = adapter.quantize(x, { dim: 64, bits: 1 });     // Uint8Array; Int8Array for 8 bits
//   adapter.decode(code, { dim: 64, bits: 1 });                 // the unit row that a code stands for
//   load(url, read) takes another reader: async (address) => ArrayBuffer

const fetchBytes = async (address) => {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(`${address}: ${answer.status} ${answer.statusText}`);
  return answer.arrayBuffer();
};

export async function load(folder, read = fetchBytes) {
  const about = JSON.parse(new TextDecoder().decode(await read(`${folder}/adapter.json`)));
  if (about.format !== "querykey adapter" || about.version !== 1)
    throw new Error(`${folder}: not an adapter of version 1`);
  const tensors = await readTensors(folder, "adapter.safetensors", about.sha256, read);
  const codes = about.codes && (await readTensors(folder, "codes.safetensors", about.codes.sha256, read));
  return adapterOf(about, tensors, codes || {});
}

async function readTensors(folder, name, sha256, read) {
  const bytes = await read(`${folder}/${name}`);
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  if (Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("") !== sha256)
    throw new Error(`${folder}: ${name} is damaged: its checksum differs from adapter.json`);
  return tensorsOf(bytes);
}

// safetensors: the length of a JSON header in 8 bytes, the header, then the numbers
function tensorsOf(bytes) {
  const start = 8 + Number(new DataView(bytes).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(bytes, 8, start - 8)));
  const { __metadata__, ...entries } = header;
  const floats = ([name, { dtype, data_offsets: [from, to] }]) => {
    if (dtype !== "F32") throw new Error(`${name} is ${dtype}; F32 is needed`);
    return [name, new Float32Array(bytes.slice(start + from, start + to))];
  };
  return Object.fromEntries(Object.entries(entries).map(floats));
}

function adapterOf({ width, dim: most, dims = [most], kind, side, codes }, tensors, tensorsOfCodes) {
  const weight = Float32Array.from(tensors.weight);
  if (kind === "residual") for (let i = 0; i < most; i++) weight[i * width + i] += 1;
  const grids = {};
  const gridOf = (name, matrix, rows) => (grids[name] ??= gridMatrix(matrix, rows));

  function transform(row, { dim = most } = {}) {
    const size = checkSize(dim);
    const x = unit(checkRow(row));
    const z = product(weight, x, size, tensors.bias);
    if (kind === "two_layer") {
      const bias = tensors["hidden.bias"];
      const hidden = product(tensors["hidden.weight"], x, bias.length, bias).map(gelu);
      product(tensors["out.weight"], hidden, size).forEach((value, i) => (z[i] += value));
    }
    return Float32Array.from(unit(z));
  }

  // The code of a document: the same bits as Adapter.quantize, for all sums are sums of whole numbers
  function quantize(row, { dim = most, bits = 8 } = {}) {
    const { scale, rotation, threshold } = checkCode(dim, bits);
    const grid = gridRow(exact(checkRow(row)).subarray(0, dim));
    if (bits === 8) {
      const divisor = grid.length * scale[0];
      return Int8Array.from(grid.whole, (value) => Math.max(-127, Math.min(127, rint(value / divisor))));
    }
    const turned = gridProduct(grid, gridOf(`rotation ${dim}`, rotation, dim));
    const packed = new Uint8Array(dim / 8);
    turned.forEach((value, i) => (packed[i >> 3] |= (value > threshold[i]) << (7 - (i & 7))));
    return packed;
  }

  function decode(code, { dim = most, bits = 8 } = {}) {
    const { scale, rotation, threshold } = checkCode(dim, bits);
    if (bits === 8) return Float32Array.from(unit(code));
    const bit = (i) => (code[i >> 3] >> (7 - (i & 7))) & 1;
    const turned = Float64Array.from({ length: dim }, (_, i) => (2 * bit(i) - 1) * scale[i] + threshold[i]);
    const z = new Float64Array(dim);
    for (let i = 0; i < dim; i++) for (let j = 0; j < dim; j++) z[j] += rotation[i * dim + j] * turned[i];
    return Float32Array.from(unit(z));
  }

  // documents before they are scaled to length 1
  function exact(row) {
    const grid = gridRow(Float32Array.from(row));
    if (side === "query") return grid.whole.map((value) => value / grid.length);
    const z = gridProduct(grid, gridOf("weight", weight, most)).map((value, i) => value + tensors.bias[i]);
    if (kind !== "two_layer") return z;
    const bias = tensors["hidden.bias"];
    const first = gridProduct(grid, gridOf("hidden", tensors["hidden.weight"], bias.length));
    const hidden = gridRow(Float32Array.from(first, (value, i) => gelu32(value + bias[i])));
    const more = gridProduct(hidden, gridOf("out", tensors["out.weight"], most));
    return z.map((value, i) => value + more[i] * (hidden.length * hidden.step));
  }

  function checkRow(row) {
    if (row.length !== width) throw new Error(`a row of ${width} numbers is needed, got ${row.length}`);
    if (!row.every(Number.isFinite)) throw new Error("a row holds NaN or infinity");
    return row;
  }

  function checkSize(dim) {
    if (!dims.includes(dim)) throw new Error(`the sizes are ${dims.join(", ")}; got dim ${dim}`);
    return dim;
  }

  function checkCode(dim, bits) {
    checkSize(dim);
    if (!codes?.of.some(([size, its]) => size === dim && its === bits))
      throw new Error(`this adapter has no codes of ${bits} bits; fit it again with them`);
    const own = (name) => tensorsOfCodes[`${dim}.${bits}.${name}`];
    return { scale: own("scale"), rotation: own("rotation"), threshold: own("threshold") };
  }

  return { width, dim: most, dims, kind, side, codes: codes?.of ?? [], transform, quantize, decode };
}

function product(matrix, x, rows, bias) {
  const columns = x.length;
  return Float64Array.from({ length: rows }, (_, i) => {
    let sum = bias ? bias[i] : 0;
    for (let j = 0; j < columns; j++) sum += matrix[i * columns + j] * x[j];
    return sum;
  });
}

function unit(row) {
  let square = 0;
  for (const value of row) square += value * value;
  if (!Number.isFinite(square)) throw new Error("a row holds NaN or infinity");
  return Float64Array.from(row, (value) => value / Math.max(Math.sqrt(square), 1e-12));
}

// A row as whole numbers of at most 2^20, on a grid of a power of two; see querykey/runtime/grid.py
function gridRow(row) {
  let peak = 0;
  for (const value of row) peak = Math.max(peak, Math.abs(value));
  const step = 2 ** (exponent(peak) - 20);
  const whole = Float64Array.from(row, (value) => rint(value * (1 / step)));
  let square = 0;
  for (const value of whole) square += value * value;
  return { whole, step, length: square > 0 ? Math.sqrt(square) : 1 };
}

function gridMatrix(matrix, rows) {
  const columns = matrix.length / rows;
  let longest = 1e-300;
  for (let i = 0; i < rows; i++) {
    let square = 0;
    for (let j = 0; j < columns; j++) square += matrix[i * columns + j] ** 2;
    longest = Math.max(longest, square);
  }
  const spare = 52 - 20 - Math.ceil(Math.log2(Math.max(columns, 2)) / 2);
  const scale = 2 ** (spare - Math.ceil(Math.log2(Math.sqrt(longest))));
  return { whole: Float64Array.from(matrix, (value) => rint(value * scale)), scale, rows };
}

function gridProduct(grid, matrix) {
  const divisor = grid.length * matrix.scale;
  return product(matrix.whole, grid.whole, matrix.rows).map((value) => value / divisor);
}

// the exponent e of peak = m 2^e with 0.5 <= m < 1
function exponent(peak) {
  if (peak === 0) return 0;
  let e = Math.floor(Math.log2(peak)) + 1;
  while (2 ** e <= peak) e++;
  while (2 ** (e - 1) > peak) e--;
  return e;
}

// to the nearest whole number, halves to the even one: above 2^52 float64 holds whole numbers alone
function rint(value) {
  if (Math.abs(value) >= 2 ** 52) return value;
  const shift = value < 0 ? -(2 ** 52) : 2 ** 52;
  return value + shift - shift;
}

// erf: Abramowitz and Stegun (1964), 7.1.26, to 1.5e-7
const COEFFICIENTS = [1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592];

function gelu(x) {
  const size = Math.abs(x) * Math.SQRT1_2;
  const t = 1 / (1 + 0.3275911 * size);
  const tail = COEFFICIENTS.reduce((sum, coefficient) => (sum + coefficient) * t, 0);
  return (x * (1 + Math.sign(x) * (1 - tail * Math.exp(-size * size)))) / 2;
}

// with the constants in float32, as the NumPy runtime has them: for codes
function gelu32(x) {
  const size = Math.abs(x) * Math.fround(Math.SQRT1_2);
  const t = 1 / (1 + Math.fround(0.3275911) * size);
  const tail = COEFFICIENTS.reduce((sum, coefficient) => (sum + Math.fround(coefficient)) * t, 0);
  return (x * (1 + Math.sign(x) * Math.abs(1 - tail * Math.exp(-size * size)))) / 2;
}
