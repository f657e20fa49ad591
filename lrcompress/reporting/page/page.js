"use strict";
const report = JSON.parse(document.getElementById("report").textContent);
const at = (id) => document.getElementById(id);
const planned = report.after !== null;

// ---- numbers as a person reads them ----------------------------------------------------------
function scaled(value, base, units) {
  let k = 0;
  while (Math.abs(value) >= base && k < units.length - 1) { value /= base; k += 1; }
  const digits = Math.abs(value) >= 100 || (k === 0 && Number.isInteger(value)) ? 0 : Math.abs(value) >= 10 ? 1 : 2;
  return `${value.toFixed(digits)}${units[k]}`;
}
const count = (v) => scaled(v, 1000, ["", " k", " M", " G"]);
const bytes = (v) => scaled(v, 1000, [" B", " kB", " MB", " GB"]);
const flops = (v) => scaled(v, 1000, [" FLOP", " kFLOP", " MFLOP", " GFLOP", " TFLOP"]);
const milliseconds = (v) => `${v.toPrecision(3)} ms`;
const percent = (v) => (v > 0 && v < 0.001 ? "< 0.1 %" : `${(100 * v).toFixed(v > 0 && v < 0.0995 ? 1 : 0)} %`);
const gap = (v) => `${v < 1e-6 ? "proven best" : `proven within ${(100 * v).toPrecision(2)} % of the best`} among the listed choices in the predicted loss`;
function real(v) {
  if (v === 0) return "0";
  const size = Math.abs(v);
  if (size < 1e-3 || size >= 1e5) return v.toExponential(1);
  return size < 999.5 ? v.toPrecision(3) : v.toFixed(0);
}
// A cosine or a share: as many digits as tell it from 1.
function agreement(v) {
  const missing = 1 - v;
  if (missing === 0) return "1";
  if (!(missing > 0 && missing < 1e-2)) return real(v);
  return String(Number(v.toFixed(Math.min(1 - Math.floor(Math.log10(missing)), 9))));
}

// Plotly draws its own small HTML in every text: what a file says is no part of that.
const plain = (s) => s.replace(/&/g, "&amp;").replace(/</g, "&lt;");

// ---- building the page -----------------------------------------------------------------------
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}
function badge(text, className = "") {
  at("badges").append(element("span", { class: `badge ${className}` }, text));
}
function fillTable(id, columns, rows, caption = "") {
  const table = at(id);
  if (caption) table.append(element("caption", {}, caption));
  if (columns.some((c) => c.title)) {
    const cells = columns.map((c) => element("th", { class: c.number ? "number" : "", scope: "col", title: c.help || "" }, c.title));
    table.append(element("thead", {}, element("tr", {}, ...cells)));
  }
  const body = element("tbody");
  for (const row of rows) {
    body.append(element("tr", {}, ...columns.map((c) => {
      const classes = [c.number ? "number" : "", c.className ? c.className(row) : ""].join(" ").trim();
      return element("td", { class: classes }, c.text(row));
    })));
  }
  table.append(body);
  return body;
}
const hide = (id) => { at(id).hidden = true; };

// ---- head and costs --------------------------------------------------------------------------
function drawHead() {
  at("model").textContent = report.model;
  if (planned) {
    const share = report.after.params / report.before.params;
    at("verdict").append(
      element("strong", {}, `${percent(share)} of the parameters`),
      ` are left: ${count(report.before.params)} → ${count(report.after.params)}, `,
      `${bytes(report.before.bytes)} → ${bytes(report.after.bytes)} on disk.`,
    );
  } else {
    const compressible = report.layers.reduce((sum, layer) => sum + layer.params, 0);
    at("verdict").textContent =
      `${count(report.before.params)} parameters, ${percent(compressible / report.before.params)} of them in ` +
      `${report.layers.length} layers that can be compressed.`;
  }
  if (report.checks.length) {
    const run = report.checks.filter((check) => check.passed !== null);
    const failed = run.filter((check) => !check.passed).length;
    badge(failed ? `${failed} of ${run.length} checks failed` : `verified: ${run.length} checks passed`, failed ? "bad" : "good");
  } else if (report.after) {
    badge("no graph exported or verified");
  }
  if (report.doubts.length) badge(report.severe_doubts.length ? "known to be bad" : "not to be trusted", "bad");
  if (report.budget) badge(`budget ${report.budget}`);
  badge(`${report.metric} metric`);
  if (report.allocator) badge(`${report.allocator} allocation`);
  if (report.optimality_gap !== null) badge(gap(report.optimality_gap));
  const tokens = report.tokens ? `, ${report.tokens.toLocaleString("en")} tokens` : "";
  badge(report.examples ? `${report.examples.toLocaleString("en")} examples${tokens}` : "no calibration data");
}
function stageTime(stage) {
  const time = stage.reused && !stage.seconds ? [] : [`${stage.seconds.toFixed(1)} s`];
  return [...time, ...(stage.reused ? ["in an earlier run"] : [])].join(", ");
}
function card(label, before, after, format) {
  const box = element("div", { class: "card" }, element("div", { class: "label" }, label));
  if (after === null) {
    box.append(element("div", { class: "value" }, format(before)));
  } else {
    const share = after / before;
    const fill = element("span");
    fill.style.width = `${Math.min(100, 100 * share)}%`;
    box.append(
      element("div", { class: "value" }, format(after)),
      element("div", { class: "bar" }, fill),
      element("div", { class: "detail" }, `${percent(share)} of ${format(before)}`),
    );
  }
  at("costs").append(box);
}
function drawCosts() {
  const { before, after } = report;
  const of = (field) => (planned ? after[field] : null);
  card("Parameters", before.params, of("params"), count);
  card("Size on disk", before.bytes, of("bytes"), bytes);
  card("Work per example", before.flops_per_example, of("flops_per_example"), flops);
  if (before.latency_ms !== null && planned && after.latency_ms !== null) {
    card("Latency, median", before.latency_ms, after.latency_ms, milliseconds);
  }
  for (const text of report.readout) at("readout").append(element("p", { class: "words" }, text));
  for (const text of report.doubts) at("doubts").append(element("div", { class: "warning doubt" }, text));
  for (const text of report.warnings) at("warnings").append(element("div", { class: "warning" }, text));
}

// ---- plots -----------------------------------------------------------------------------------
const PALETTE = ["#2a7f9e", "#d08a2e", "#5b8f4b", "#b4566b", "#7a6bb5", "#3aa08f", "#a0703c", "#6f7d8c", "#c46fae", "#8a9a2b"];
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
// A list of its own: plotly's default buttons include one that sends the chart to a server.
const config = { displaylogo: false, responsive: true, modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]] };
function layout(extra) {
  const axis = { gridcolor: css("--line"), zerolinecolor: css("--line"), linecolor: css("--line"), automargin: true, exponentformat: "power" };
  const { xaxis = {}, yaxis = {}, ...rest } = extra;
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: css("--sans"), size: 13, color: css("--ink") },
    margin: { l: 64, r: 44, t: 24, b: 58 },
    modebar: { orientation: "v", bgcolor: "rgba(0,0,0,0)", color: css("--soft"), activecolor: css("--accent") },
    hoverlabel: { bgcolor: css("--card"), bordercolor: css("--line"), font: { color: css("--ink") } },
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
    xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...rest,
  };
}

// Layers that differ in a number only (blocks.0.fc, blocks.1.fc) share a colour.
const family = (layer) => layer.name.replace(/\d+/g, "*");
function colouring() {
  const families = [...new Set(report.layers.map(family))];
  if (families.length > PALETTE.length || families.length === report.layers.length) {
    return { key: (layer) => layer.kind, keys: [...new Set(report.layers.map((l) => l.kind))] };
  }
  return { key: family, keys: families };
}
const fullRank = (layer) => Math.min(layer.out_features, layer.in_features);
const isDense = (layer) => layer.structure === "dense";
const isRounded = (layer) => layer.structure !== "" && layer.structure === layer.format;  // dense, in a format
const isLowRank = (layer) => layer.rank !== null;
const inFormats = report.layers.filter((layer) => layer.format);
const MEASURES = {
  "Parameters": { of: (l) => l.params_kept / l.params, axis: "share of the weight's parameters", format: ".0%" },
  ...(inFormats.length ? { "Bytes": { of: (l) => l.bytes_kept, axis: "share of the weight's bytes", format: ".0%" } } : {}),
  "Rank": { of: (l) => (isDense(l) || isRounded(l) ? 1 : rankOrEqual(l) / fullRank(l)), axis: "share of full rank", format: ".0%" },
  "Predicted loss": { of: (l) => l.predicted_loss, axis: "predicted loss", format: ".2~g" },
};
let measureName = inFormats.length ? "Bytes" : "Parameters";

// Of another structure the rank at which low rank would hold as many parameters.
const perRank = (layer) => layer.groups * (layer.out_features + layer.in_features);
const rankOrEqual = (layer) => (isLowRank(layer) ? layer.rank : layer.params_kept / perRank(layer));

// What stands there, and why it is not low rank.
function decision(layer) {
  const why = layer.saved === null ? "" : ` (${percent(Math.abs(layer.saved)).replace(" ", "\u00a0")} ${layer.saved < 0 ? "more" : "less"} loss than low rank)`;
  return `${layer.structure}${why}`;
}

// One tick for each numbered block: up to the first number of a name, or its first part.
function blockOf(name) {
  const parts = name.split(".");
  const number = parts.findIndex((part) => /^\d+$/.test(part));
  return parts.slice(Math.max(0, number - 1), number < 0 ? 1 : number + 1).join(".");
}
function blockTicks() {
  const runs = [];
  report.layers.forEach((layer, i) => {
    const text = blockOf(layer.name);
    const last = runs[runs.length - 1];
    if (last && last.text === text) last.end = i; else runs.push({ text, start: i, end: i });
  });
  return { tickvals: runs.map((run) => (run.start + run.end) / 2), ticktext: runs.map((run) => plain(run.text)) };
}
function withoutCommonPrefix(names) {
  const split = names.map((name) => name.split("."));
  let shared = 0;
  while (split.every((parts) => parts.length > shared + 1 && parts[shared] === split[0][shared])) shared += 1;
  return split.map((parts) => parts.slice(shared).join("."));
}
function drawPlan() {
  const measure = MEASURES[measureName];
  const { key, keys } = colouring();
  const labels = keys.length > 1 ? withoutCommonPrefix(keys) : keys;
  const traces = keys.map((name, k) => {
    const chosen = report.layers.map((layer, i) => [layer, i]).filter(([layer]) => key(layer) === name);
    return {
      type: "bar", width: 0.78, name: plain(labels[k]), x: chosen.map(([, i]) => i), y: chosen.map(([l]) => measure.of(l)),
      marker: {
        color: PALETTE[k % PALETTE.length], opacity: chosen.map(([l]) => (isDense(l) ? 0.35 : 1)),
        pattern: { shape: chosen.map(([l]) => (isDense(l) || isRounded(l) || isLowRank(l) ? "" : "/")), fillmode: "overlay", size: 6 },
      },
      customdata: chosen.map(([l]) => [plain(l.name), plain(decision(l)), `${count(l.params_kept)} of ${count(l.params)} parameters`, `${l.out_features} × ${l.in_features}, ${plain(l.kind)}`]),
      hovertemplate: "<b>%{customdata[0]}</b><br>%{customdata[1]}<br>%{customdata[2]}<br>%{customdata[3]}<extra></extra>",
    };
  });
  Plotly.react("plan-plot", traces, layout({
    bargap: 0.25, barmode: "overlay", hovermode: "closest", showlegend: keys.length > 1,
    xaxis: { ...blockTicks(), range: [-0.7, report.layers.length - 0.3], showgrid: false, zeroline: false, tickfont: { size: 11 } },
    yaxis: { title: { text: measure.axis }, tickformat: measure.format, rangemode: "tozero" },
  }), config);
}
const bars = (number, look, one, many) => `The ${number} ${look} ${number === 1 ? `bar ${one}` : `bars ${many}`}`;
function drawPlanControls() {
  for (const name of Object.keys(MEASURES)) {
    const button = element("button", { type: "button", "aria-pressed": String(name === measureName) }, name);
    button.addEventListener("click", () => {
      measureName = name;
      for (const other of at("plan-measure").children) other.setAttribute("aria-pressed", String(other === button));
      drawPlan();
    });
    at("plan-measure").append(button);
  }
  const dense = report.layers.filter(isDense).length;
  const structured = report.layers.filter((layer) => !isDense(layer) && !isRounded(layer) && !isLowRank(layer));
  const better = structured.filter((layer) => layer.saved > 0).length;
  const gain = better === structured.length ? "each is predicted to lose less" : `${better} of these are predicted to lose less`;
  const others = structured.length
    ? ` ${bars(structured.length, "hatched", "takes", "take")} another structure than low rank: ${gain} than low rank of as many parameters would, whose rank "Rank" shows.`
    : "";
  const byFormat = {};
  for (const layer of inFormats) byFormat[layer.format] = (byFormat[layer.format] || 0) + 1;
  const formats = inFormats.length ? ` Stored in number formats: ${Object.entries(byFormat).map(([name, many]) => `${many} in ${name}`).join(", ")}.` : "";
  const factored = report.layers.length - dense - report.layers.filter(isRounded).length;
  const proof = report.optimality_gap === null ? "" : ` The sum of predicted losses is ${gap(report.optimality_gap)} at this budget.`;
  at("plan-words").textContent =
    `${factored} of ${report.layers.length} layers are factored.${formats}${dense ? ` ${bars(dense, "pale", "stays", "stay")} dense.` : ""}${others}${proof}`;
}

let shownLayer = 0;
function drawSpectrum() {
  const layer = report.layers[shownLayer];
  const traces = layer.spectra.map((spectrum, k) => ({
    type: "scatter", mode: "lines", name: plain(`${spectrum.metric} spectrum`),
    x: spectrum.index, y: spectrum.values.map((v) => v / spectrum.values[0]),
    line: { color: PALETTE[k], width: 2.2 },
    customdata: spectrum.values.map(real),
    hovertemplate: "σ<sub>%{x}</sub> = %{customdata}<extra>%{fullData.name}</extra>",
  }));
  const marks = [
    { x: layer.rank, text: "rank kept", dash: "solid", color: css("--ink") },
    { x: layer.break_even_rank, text: "break-even", dash: "dot", color: css("--soft") },
    { x: layer.e90, text: "90 % of plain energy", dash: "dash", color: css("--soft") },
  ].filter((mark) => mark.x);
  // A crowd of close marks stays legible when each label has a row of its own.
  const annotations = marks.map((mark, k) => ({
    x: mark.x, y: 1 - 0.07 * k, yref: "paper", text: `${mark.text} ${mark.x}`, showarrow: false,
    xanchor: mark.x > 0.75 * fullRank(layer) ? "right" : "left", xshift: mark.x > 0.75 * fullRank(layer) ? -5 : 5,
    font: { color: mark.color, size: 12 }, bgcolor: css("--card"), borderpad: 1,
  }));
  Plotly.react("spectrum-plot", traces, layout({
    hovermode: "x", annotations,
    shapes: marks.map((mark) => ({ type: "line", x0: mark.x, x1: mark.x, y0: 0, y1: 1, yref: "paper", line: { color: mark.color, width: 1.2, dash: mark.dash } })),
    xaxis: { title: { text: "direction", standoff: 8 }, range: [0, fullRank(layer) * 1.02] },
    yaxis: { title: { text: "singular value / largest" }, type: "log", dtick: 1 },
  }), config);
  at("spectrum-words").textContent =
    `${layer.out_features} × ${layer.in_features} ${layer.kind}${layer.groups > 1 ? ` in ${layer.groups} groups` : ""}` +
    `${layer.structure ? `, ${layer.structure}` : ""}. Stable rank ${real(layer.stable_rank)}, effective rank ${real(layer.effective_rank)}, ` +
    `numerical rank ${layer.numerical_rank}; ${layer.above_noise} directions above the noise edge. Sensitivity ${real(layer.sensitivity)}.`;
  at("spectrum-layer").value = String(shownLayer);
}
function showLayer(index) {
  shownLayer = (index + report.layers.length) % report.layers.length;
  drawSpectrum();
}
function drawSpectrumControls() {
  report.layers.forEach((layer, i) => at("spectrum-layer").append(element("option", { value: i }, layer.name)));
  at("spectrum-layer").addEventListener("change", (event) => showLayer(Number(event.target.value)));
  at("spectrum-previous").addEventListener("click", () => showLayer(shownLayer - 1));
  at("spectrum-next").addEventListener("click", () => showLayer(shownLayer + 1));
}

function unit() {
  const nats = ["kl", "probabilities", "bernoulli", "bernoulli-probabilities"].includes(report.objective) ? ", in nats" : "";
  const positions = Math.max(1, ...report.divergences.map((row) => row.positions));
  const summed = positions > 1 && report.objective !== "weighted-sum" ? `, summed over its positions (${positions.toPrecision(3)} on average)` : "";
  return plain(`${report.objective} divergence per example${nats}${summed}`);
}
function drawDivergence() {
  const rows = report.divergences;
  const refitted = rows.some((row) => row.without_refit !== null);
  const bars = [["predicted", "predicted", PALETTE[0]], ["measured", refitted ? "with the refit" : "measured", PALETTE[1]]];
  if (refitted) bars.splice(1, 0, ["without_refit", "measured without the refit", PALETTE[2]]);
  const traces = bars.map(([key, name, color]) => ({
    type: "bar", orientation: "h", name, y: rows.map((row) => plain(row.where)), x: rows.map((row) => row[key]),
    marker: { color }, text: rows.map((row) => (row[key] === null ? "" : real(row[key]))), textposition: "auto",
    hovertemplate: `${name}: %{x:.4g}<extra>%{y}</extra>`,
  }));
  Plotly.react("divergence-plot", traces, layout({
    barmode: "group", bargap: 0.3, hovermode: "closest",
    xaxis: { title: { text: unit(), standoff: 8 }, rangemode: "tozero" },
    yaxis: { autorange: "reversed" },
  }), config);
}
function drawTried() {
  at("tried-words").textContent =
    `Each plan was put in place for a moment and measured on ${report.judging_examples} examples set aside; ` +
    "the one that diverges least was kept.";
  fillTable("tried", [
    { title: "Plan", text: (row) => row.name, className: (row) => (row.kept ? "kept" : "") },
    { title: "Fitted in the metric", text: (row) => row.metric },
    { title: "Ranks by", text: (row) => row.allocator },
    { title: "Predicted", number: true, text: (row) => real(row.predicted) },
    { title: "Measured", number: true, text: (row) => real(row.measured) },
    { title: "", text: (row) => (row.kept ? "kept" : "") },
  ], report.tried);
}
function drawSweep() {
  const kept = report.sweep.map((point) => 100 * point.params / report.before.params);
  const traces = [["predicted", PALETTE[0]], ["measured", PALETTE[1]]].map(([name, color]) => ({
    type: "scatter", mode: "lines+markers", name, x: kept, y: report.sweep.map((point) => point[name]),
    marker: { color }, line: { color }, text: report.sweep.map((point) => plain(point.budget)),
    hovertemplate: `${name} at %{text}: %{y:.4g}<extra></extra>`,
  }));
  Plotly.react("sweep-plot", traces, layout({
    xaxis: { title: { text: "parameters kept, %", standoff: 8 } },
    yaxis: { title: { text: unit() }, type: "log", dtick: 1 },
  }), config);
}
function drawTuning() {
  const points = report.tuning.history.filter((point) => point.value !== null);
  const trace = {
    type: "scatter", mode: "lines+markers", x: points.map((point) => point.step), y: points.map((point) => point.value),
    marker: { color: PALETTE[1] }, line: { color: PALETTE[1] }, hovertemplate: "step %{x}: %{y:.4g}<extra></extra>",
  };
  Plotly.react("tuning-plot", [trace], layout({
    xaxis: { title: { text: "step", standoff: 8 }, rangemode: "tozero" },
    yaxis: { title: { text: plain(`${report.tuning.measure} per example`) }, rangemode: "tozero" },
  }), config);
}
function drawTuningWords() {
  const { tuning } = report;
  const restarts = tuning.restarts ? ` ${tuning.restarts} times the weights went astray, went back to the best point and on at half the rate.` : "";
  const kept = tuning.best_step ? `The weights kept are those after ${tuning.best_step} of ${tuning.steps} steps` : `No step of ${tuning.steps} was better than the start, which is kept`;
  at("tuning-words").textContent =
    `${kept}: ${real(tuning.start)} → ${real(tuning.end)} on ${tuning.judging_examples} examples that were set aside ` +
    `(objective ${tuning.objective}, ${count(tuning.trained_params)} parameters trained, learning rate ${tuning.learning_rate}).${restarts}`;
}
function drawDivergenceWords() {
  at("divergence-words").textContent =
    "The plan adds up the layers' losses; the measured figure is the whole network's, dense against compressed. " +
    "What separates them are the effects of one layer on the next, which the sum leaves out. " +
    "The prediction is of the plan without a refit.";
  const fidelity = Object.entries(report.fidelity || {});
  if (fidelity.length) {
    fillTable("fidelity", [
      { text: ([name]) => name }, { number: true, text: ([, value]) => agreement(value) },
    ], fidelity, "The compressed network beside the dense one");
  }
}

// ---- tables ----------------------------------------------------------------------------------
// A long name may break after its dots.
const breakable = (name) => element("span", {}, ...name.split(/(?<=\.)/).flatMap((part, i) => (i ? [element("wbr"), part] : [part])));
const LAYER_COLUMNS = [
  { title: "layer", value: (l) => l.name, text: (l) => breakable(l.name), className: () => "name" },
  { title: "kind", value: (l) => l.kind },
  { title: "shape", value: (l) => l.params, text: (l) => `${l.groups > 1 ? `${l.groups} × ` : ""}${l.out_features} × ${l.in_features}`, number: true },
  ...(planned ? [
    { title: "decision", value: (l) => (isDense(l) ? Infinity : isLowRank(l) ? l.rank : l.params_kept / l.params), text: decision, className: () => "decision" },
    { title: "kept", value: (l) => l.params_kept / l.params, text: (l) => percent(l.params_kept / l.params), number: true, help: "share of the weight's parameters" },
    ...(inFormats.length ? [{ title: "bytes", value: (l) => l.bytes_kept, text: (l) => percent(l.bytes_kept), number: true, help: "share of the weight's bytes in the precision of the export" }] : []),
    { title: "loss", value: (l) => l.predicted_loss, text: (l) => real(l.predicted_loss), number: true, help: "predicted, in the plan's metric" },
  ] : []),
  { title: "sensitivity", value: (l) => l.sensitivity, text: (l) => real(l.sensitivity), number: true, help: "loss of a zero weight" },
  { title: "stable", value: (l) => l.stable_rank, text: (l) => l.stable_rank.toFixed(1), number: true, help: "stable rank: squared Frobenius norm over squared largest singular value" },
  { title: "effective", value: (l) => l.effective_rank, text: (l) => l.effective_rank.toFixed(1), number: true, help: "effective rank: exponential of the spectrum's entropy" },
  { title: "numerical", value: (l) => l.numerical_rank, number: true, help: "singular values above 0.1 % of the largest" },
  { title: "e90", value: (l) => l.e90, number: true, help: "directions that hold 90 % of the energy" },
  { title: "e99", value: (l) => l.e99, number: true, help: "directions that hold 99 % of the energy" },
  { title: "MP", value: (l) => l.above_noise, number: true, help: "singular values above the Marchenko-Pastur edge" },
  { title: "break-even", value: (l) => l.break_even_rank, number: true, help: "largest rank whose factors are smaller than the weight" },
].map((column) => ({ text: (l) => String(column.value(l)), ...column }));

function drawLayers() {
  const body = fillTable("layers", LAYER_COLUMNS, report.layers);
  const rows = [...body.rows];
  rows.forEach((row, i) => row.addEventListener("click", () => {
    showLayer(i);
    at("spectra-section").scrollIntoView({ behavior: "smooth" });
  }));
  const heads = [...at("layers").tHead.rows[0].cells];
  heads.forEach((head, k) => {
    const sort = () => {
      const ascending = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      const values = report.layers.map(LAYER_COLUMNS[k].value);
      const order = rows.map((_, i) => i).sort((a, b) => (values[a] < values[b] ? -1 : values[a] > values[b] ? 1 : a - b));
      if (!ascending) order.reverse();
      body.append(...order.map((i) => rows[i]));
    };
    head.tabIndex = 0;
    head.addEventListener("click", sort);
    head.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(); });
  });
}
function moduleNames(group) {
  const names = group.map((m) => element("code", {}, m.name || "(the model itself)"));
  if (names.length === 1) return names[0];
  const list = names.flatMap((name, i) => (i ? [", ", name] : [name]));
  return element("details", {}, element("summary", {}, `${names.length} modules`), ...list);
}
function drawTables() {
  drawLayers();
  if (report.checks.length) {
    fillTable("checks", [
      { title: "check", text: (c) => c.name },
      { title: "result", text: (c) => ({ true: "✓ passed", false: "✗ failed", null: "– not run" })[c.passed], className: (c) => ({ true: "passed", false: "failed", null: "" })[c.passed] },
      { title: "detail", text: (c) => c.detail, className: () => "wide" },
    ], report.checks);
    for (const text of report.axes) at("axes").append(element("p", { class: "words" }, `input ${text}`));
  }
  const leftParams = report.left_alone.reduce((sum, item) => sum + item.params, 0);
  at("left-words").textContent = `${count(leftParams)} parameters, ${percent(leftParams / report.before.params)} of the model, are as they were.`;
  const groups = [...Map.groupBy(report.left_alone, (m) => `${m.kind}: ${m.reason}`).values()];
  const held = (group) => group.reduce((sum, m) => sum + m.params, 0);
  groups.sort((one, other) => held(other) - held(one));
  fillTable("left", [
    { title: "kind", text: ([first]) => first.kind },
    { title: "parameters", text: (group) => held(group).toLocaleString("en"), number: true },
    { title: "of all", text: (group) => percent(held(group) / report.before.params), number: true },
    { title: "reason", text: ([first]) => first.reason, className: () => "wide" },
    { title: "modules", text: moduleNames, className: () => "wide" },
  ], groups);
  at("command").textContent = report.command;
  if (report.stages.length) {
    fillTable("stages", [
      { text: (s) => s.name }, { number: true, text: stageTime },
    ], report.stages, "Time");
  }
  if (report.files.length) {
    fillTable("files", [{ text: (f) => f.name }, { number: true, text: (f) => bytes(f.bytes) }], report.files, "Files");
  }
  fillTable("environment", [{ text: ([name]) => name }, { text: ([, value]) => value }], Object.entries(report.environment), "Environment");
}

// ---- all of it -------------------------------------------------------------------------------
function drawPlots() {
  if (planned) drawPlan();
  if (report.layers.length) drawSpectrum();
  if (report.divergences.length) drawDivergence();
  if (report.sweep.length) drawSweep();
  if (report.tuning) drawTuning();
}
drawHead();
drawCosts();
if (planned) drawPlanControls(); else hide("plan-section");
if (report.layers.length) drawSpectrumControls(); else { hide("spectra-section"); hide("layers-section"); hide("plan-section"); }
if (report.divergences.length) drawDivergenceWords(); else hide("divergence-section");
if (report.tried.length) drawTried(); else hide("tried-section");
if (!report.sweep.length) hide("sweep-section");
if (report.tuning) drawTuningWords(); else hide("tuning-section");
if (!report.checks.length) hide("checks-section");
if (!report.left_alone.length) hide("left-section");
drawTables();
drawPlots();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawPlots);
document.documentElement.dataset.drawn = "true";
