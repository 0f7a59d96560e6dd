(async () => {
  "use strict";
  const charts = JSON.parse(document.getElementById("charts").textContent);
  if (!Object.keys(charts).length || !("DecompressionStream" in window)) return;
  const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const coloured = (value) => {
    const style = getComputedStyle(document.documentElement);
    const named = (_, name) => style.getPropertyValue(name).trim();
    return JSON.parse(JSON.stringify(value).replace(/var\((--[\w-]+)\)/g, named));
  };
  const merged = (base, own) => {
    const all = { ...base };
    for (const [key, value] of Object.entries(own)) {
      const isTable = value && typeof value === "object" && !Array.isArray(value) && key in base;
      all[key] = isTable ? merged(base[key], value) : value;
    }
    return all;
  };
  const axis = {
    automargin: true, gridcolor: "var(--grid)", zerolinecolor: "var(--grid)", linecolor: "var(--muted)",
    tickfont: { color: "var(--muted)", size: 12 }, title: { standoff: 10, font: { size: 13 } }, fixedrange: true,
  };
  const layout = {
    height: 330, margin: { l: 10, r: 14, t: 10, b: 10 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: "var(--ink)", size: 13, family: "system-ui, 'Segoe UI', Helvetica, Arial, sans-serif" },
    separators: ".,", xaxis: axis, yaxis: axis,
    legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom", font: { size: 12 } },
    hoverlabel: { bgcolor: "var(--paper)", bordercolor: "var(--muted)", font: { color: "var(--ink)" }, align: "left" },
  };

  const tip = document.getElementById("tip");
  const showPicture = (sheet, event) => {
    const point = event.points[0];
    const place = point.customdata;
    tip.replaceChildren();
    if (place >= 0) {
      const picture = document.createElement("span");
      picture.className = `picture ${sheet}`;
      document.body.append(picture);
      const wide = parseFloat(getComputedStyle(picture).width);
      const columns = Math.round(parseFloat(getComputedStyle(picture).backgroundSize) / wide);
      picture.style.backgroundPosition = `-${(place % columns) * wide}px -${Math.floor(place / columns) * wide}px`;
      tip.append(picture);
    }
    tip.append(point.text);
    tip.hidden = false;
    const { clientX: x, clientY: y } = event.event;
    tip.style.left = `${Math.min(x + 14, innerWidth - tip.offsetWidth - 8)}px`;
    tip.style.top = `${Math.min(y + 14, innerHeight - tip.offsetHeight - 8)}px`;
  };

  const drawAll = async () => {
    for (const [name, chart] of Object.entries(charts)) {
      const figure = document.getElementById(name);
      const plot = figure.querySelector(".plot");
      figure.classList.add("drawn");
      const look = merged(layout, chart.layout);
      await window.Plotly.react(plot, coloured(chart.data), coloured(look), { responsive: true, displayModeBar: false });
      if (chart.sheet && !plot.dataset.hovers) {
        plot.dataset.hovers = "yes";
        plot.on("plotly_hover", (event) => showPicture(chart.sheet, event));
        plot.on("plotly_unhover", () => { tip.hidden = true; });
      }
    }
    document.documentElement.dataset.drawn = "yes";
  };
  await drawAll();
  dark.addEventListener("change", drawAll);
})();
