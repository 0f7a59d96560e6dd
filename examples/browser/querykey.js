// Apply an adapter that querykey saved, in the browser or in node; no dependencies.
//
//   import { load } from "./querykey.js";
//   const adapter = await load("run");         // a folder with adapter.json and adapter.safetensors
//   const z = adapter.transform(x);            // Float32Array of length 1, adapter.dim numbers
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
  const bytes = await read(`${folder}/adapter.safetensors`);
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  if (Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("") !== about.sha256)
    throw new Error(`${folder}: adapter.safetensors is damaged: its checksum differs from adapter.json`);
  return adapterOf(about, tensorsOf(bytes));
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

function adapterOf({ width, dim, kind, side }, tensors) {
  function transform(row) {
    if (row.length !== width) throw new Error(`a row of ${width} numbers is needed, got ${row.length}`);
    const x = unit(row);
    const z = product(tensors.weight, x, dim, tensors.bias);
    if (kind === "residual") for (let i = 0; i < dim; i++) z[i] += x[i];
    if (kind === "two_layer") {
      const bias = tensors["hidden.bias"];
      const hidden = product(tensors["hidden.weight"], x, bias.length, bias).map(gelu);
      product(tensors["out.weight"], hidden, dim).forEach((value, i) => (z[i] += value));
    }
    return Float32Array.from(unit(z));
  }
  return { width, dim, kind, side, transform };
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

// erf: Abramowitz and Stegun (1964), 7.1.26, to 1.5e-7
function gelu(x) {
  const size = Math.abs(x) * Math.SQRT1_2;
  const t = 1 / (1 + 0.3275911 * size);
  const series = [1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592];
  const tail = series.reduce((sum, coefficient) => (sum + coefficient) * t, 0);
  return (x * (1 + Math.sign(x) * (1 - tail * Math.exp(-size * size)))) / 2;
}
