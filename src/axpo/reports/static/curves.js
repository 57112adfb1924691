// Training curves: the mean over the runs of a method, and a band from its lowest to its highest run.

const curves = once(() => readJson("curves"));
const DASHES = [undefined, [6, 4], [2, 3]];
const drawn = [];

/** Centred moving average over `width` steps; what is missing stays missing. */
function smooth(values, width) {
  const half = Math.floor(width / 2);
  return values.map((value, index) => {
    if (value === null) return null;
    const near = values.slice(Math.max(0, index - half), index + half + 1).filter((other) => other !== null);
    return near.reduce((sum, other) => sum + other, 0) / near.length;
  });
}

/** The lines of a panel: for each method and key the mean, lowest and highest run at every step. */
function linesOf(panel, width) {
  const series = curves().series;
  const steps = [...new Set(series.flatMap((one) => one.steps))].sort((a, b) => a - b);
  const place = new Map(steps.map((step, index) => [step, index]));
  const lines = [];
  page.arms.forEach((arm, armIndex) => {
    for (const { key, dash } of panel.keys) {
      const runs = series
        .filter((one, index) => page.runs[index].arm === armIndex && one.values[key])
        .map((one) => {
          const values = new Array(steps.length).fill(null);
          const kept = panel.scale === "log" ? one.values[key].map((v) => (v > 0 ? v : null)) : one.values[key];
          smooth(kept, width).forEach((value, index) => { values[place.get(one.steps[index])] = value; });
          return values;
        });
      if (runs.length === 0) continue;
      const at = steps.map((_, index) => runs.map((run) => run[index]).filter((value) => value !== null));
      lines.push({
        arm: armIndex, key, dash, numRuns: runs.length,
        mean: at.map((v) => (v.length ? v.reduce((a, b) => a + b, 0) / v.length : null)),
        low: at.map((v) => (v.length ? Math.min(...v) : null)),
        high: at.map((v) => (v.length ? Math.max(...v) : null)),
      });
    }
  });
  return { steps, lines };
}

function valueText(panel, value) {
  if (value === null || value === undefined) return "–";
  if (panel.scale === "share") return percentText(value);
  const size = Math.abs(value);
  return size !== 0 && (size < 0.001 || size >= 1e6) ? value.toExponential(1) : String(Number(value.toPrecision(3)));
}

function describeLines(panel, { steps, lines }, index) {
  const last = steps.length - 1;
  const parts = lines.map((line) => {
    const at = index ?? line.mean.findLastIndex((value) => value !== null);
    const earlier = (index ?? null) === null && at < last ? ` at step ${steps[at]}` : "";
    const band = line.numRuns > 1 && line.low[at] !== null
      ? ` (${valueText(panel, line.low[at])} – ${valueText(panel, line.high[at])})` : "";
    const name = panel.keys.length > 1 ? ` ${line.key.split("/").slice(1).join("/").replaceAll("_", " ")}` : "";
    const definition = panel.keys.find((one) => one.key === line.key).def;
    return el("span", { class: `arm-${line.arm}`, title: definition },
      el("span", { class: "swatch" }), `${page.arms[line.arm].label}${name} `,
      el("b", { text: valueText(panel, line.mean[at]) }), el("span", { class: "muted", def: "band", text: band + earlier }));
  });
  const step = steps[index ?? last];
  return [el("span", { class: "muted", def: "step", text: `step ${step}` }), ...parts];
}

function plotOptions(panel, lines, host, isBand) {
  const axis = { stroke: () => color("--muted"), grid: { stroke: () => color("--line"), width: 1 }, ticks: { show: false } };
  const series = [{}];
  const bands = [];
  for (const line of lines) {
    const paint = () => color("--c", host.querySelector(`.arm-${line.arm}`));
    series.push({ stroke: paint, width: 2, dash: DASHES[line.dash], points: { show: line.mean.length === 1 }, spanGaps: true });
    if (!isBand || line.numRuns < 2) continue;
    series.push({ stroke: "transparent", width: 0, points: { show: false } }, { stroke: "transparent", width: 0, points: { show: false } });
    bands.push({
      series: [series.length - 1, series.length - 2], // the upper line first
      fill: () => paint().replace("rgb(", "rgba(").replace(")", ", 0.16)"),
    });
  }
  const range = { share: () => [-0.02, 1.02], log: undefined, number: (_, low, high) => [Math.min(0, low ?? 0), high > 0 ? high * 1.06 : 1] };
  return {
    width: 100, height: 200, legend: { show: false }, padding: [8, 8, 0, 0], series, bands,
    cursor: { sync: { key: "steps" }, drag: { x: false, y: false }, y: false, points: { size: 6 } },
    scales: { x: { time: false }, y: panel.scale === "log" ? { distr: 3 } : { range: range[panel.scale] } },
    axes: [
      { ...axis, size: 26, font: "11px system-ui", values: (_, marks) => marks.map((mark) => (Number.isInteger(mark) ? mark : "")) },
      {
        ...axis, size: 48, font: "11px system-ui", ...(panel.scale === "share" ? { splits: () => [0, 0.25, 0.5, 0.75, 1] } : {}),
        values: (_, marks) => marks.map((mark) => (panel.scale === "share" ? `${Math.round(100 * mark)} %`
          : panel.scale === "log" ? (Number.isInteger(Math.log10(mark)) ? mark.toExponential(0) : "") : Number(mark.toPrecision(3)))),
      },
    ],
  };
}

function drawPanel(panel, width, isBand) {
  const found = linesOf(panel, width);
  const host = el("div", { class: "plot", tabindex: "0", role: "img" });
  host.append(...page.arms.map((_, index) => el("i", { class: `arm-${index}`, hidden: true })));
  const readout = el("p", { class: "readout" }, describeLines(panel, found));
  host.setAttribute("aria-label", `${panel.title}, last step: ${readout.textContent}`);
  const figure = el("figure", { class: "card chart" },
    el("h3", { text: panel.title, title: panel.keys.map((one) => one.def).join(" "), "data-def": true, tabindex: "0" }),
    host, readout, el("figcaption", { text: panel.caption }));
  const data = [found.steps];
  for (const line of found.lines) {
    data.push(line.mean);
    if (isBand && line.numRuns > 1) data.push(line.low, line.high);
  }
  const options = plotOptions(panel, found.lines, host, isBand);
  options.hooks = { setCursor: [(plot) => readout.replaceChildren(...describeLines(panel, found, plot.cursor.idx))] };
  return { figure, host, start: () => startPlot(host, options, data, found.steps) };
}

function startPlot(host, options, data, steps) {
  const plot = new uPlot({ ...options, width: host.clientWidth || 300 }, data, host);
  drawn.push(plot);
  new ResizeObserver(() => host.clientWidth && plot.setSize({ width: host.clientWidth, height: 200 })).observe(host);
  host.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    const at = Math.max(0, Math.min(steps.length - 1, (plot.cursor.idx ?? steps.length - 1) + by));
    plot.setCursor({ left: plot.valToPos(steps[at], "x"), top: 10 });
  });
  plot.over.addEventListener("click", () => {
    if (plot.cursor.idx !== null && plot.cursor.idx !== undefined && document.getElementById("rollouts")) openStep(steps[plot.cursor.idx]);
  });
}

function drawCurves() {
  const width = Number(document.getElementById("smoothing").value);
  const isBand = document.getElementById("bands")?.checked ?? false;
  drawn.splice(0).forEach((plot) => plot.destroy());
  const host = document.getElementById("charts");
  const panels = [];
  host.replaceChildren(...curves().sections.flatMap((section) => {
    const made = section.panels.map((panel) => drawPanel(panel, width, isBand));
    panels.push(...made);
    return [el("h2", { text: section.title }), el("div", { class: "charts" }, made.map((panel) => panel.figure))];
  }));
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries.filter((one) => one.isIntersecting)) {
      seen.unobserve(entry.target);
      panels.find((panel) => panel.host === entry.target).start();
    }
  }, { rootMargin: "300px" });
  panels.forEach((panel) => seen.observe(panel.host));
}

const startCurves = once(() => {
  const steps = Math.max(...curves().series.map((one) => one.steps.length), 0);
  const chosen = state.values.get("mean") ?? (steps > 150 ? "15" : steps > 15 ? "5" : "1");
  const redraw = (name, value) => { remember({ [name]: value }); drawCurves(); };
  const smoothing = el("select", { id: "smoothing", onchange: (event) => redraw("mean", event.target.value) }, ["1", "5", "15", "31"].map((width) =>
    el("option", { value: width, text: width === "1" ? "no smoothing" : `mean of ${width} steps`, selected: width === chosen })));
  const hasSeeds = page.arms.some((arm) => arm.seeds.length > 1);
  const legend = page.arms.map((arm, index) => el("span", { class: `arm-${index}` }, el("span", { class: "swatch" }), arm.label,
    el("span", { class: "muted", def: "seeds", text: arm.seeds.length > 1 ? ` ${arm.seeds.length} seeds` : "" })));
  document.getElementById("curve-controls").append(
    ...legend, el("label", { def: "smoothing" }, "Lines", smoothing),
    hasSeeds ? el("label", { def: "band" }, el("input", {
      type: "checkbox", id: "bands", checked: state.values.get("bands") !== "no", onchange: (event) => redraw("bands", event.target.checked ? null : "no") }), "band over seeds") : "",
    document.getElementById("rollouts") ? el("span", { class: "muted", text: "A click on a curve opens the rollouts of its step." }) : "");
  drawCurves();
  themeListeners.push(() => drawn.forEach((plot) => plot.redraw(false, true)));
  return true;
});

if (document.getElementById("curves")) onView("curves", startCurves);
