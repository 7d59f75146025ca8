// Small charts as SVG. Each is drawn into a host element of any width and is read by mouse, touch and arrow keys.

const SVG = "http://www.w3.org/2000/svg";
const LEFT = 44, RIGHT = 10, TOP = 12, BOTTOM = 24;

function node(name, attributes, parent) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "text") made.textContent = value; else made.setAttribute(key, value);
  }
  if (parent) parent.append(made);
  return made;
}

function fresh(host) {
  const width = host.clientWidth || 300, height = host.clientHeight || 160;
  host.querySelector("svg")?.remove();
  const svg = node("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  host.prepend(svg);
  return { svg, width, height };
}

function niceTicks(low, high, count) {
  const span = high - low || Math.abs(high) || 1;
  const raw = span / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((m) => m >= raw);
  const ticks = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-6; at += step) ticks.push(+at.toPrecision(12));
  return ticks;
}

function short(value) {
  if (value === null || value === undefined || !isFinite(value)) return "-";
  const size = Math.abs(value);
  if (size >= 1e9) return `${+(value / 1e9).toPrecision(3)}G`;
  if (size >= 1e6) return `${+(value / 1e6).toPrecision(3)}M`;
  if (size >= 1e4) return `${+(value / 1e3).toPrecision(3)}k`;
  if (size >= 100) return Math.round(value).toLocaleString("en");
  return `${+value.toPrecision(3)}`;
}

function empty(host, text) {
  const { svg, width, height } = fresh(host);
  node("text", { x: width / 2, y: height / 2, "text-anchor": "middle", class: "empty", text }, svg);
  host.setAttribute("aria-label", text);
  host.chart = null;
}

function drawRefs(svg, refs, left, width, py) {
  for (const ref of refs) {
    node("line", { x1: left, x2: width - RIGHT, y1: py(ref.at), y2: py(ref.at), class: "ref" }, svg);
    node("text", { x: width - RIGHT, y: py(ref.at) - 6, "text-anchor": "end", class: "ref-label", text: ref.label }, svg);
  }
}

// options: low, high (forced ends of y), refs [{ at, label }], area, format
function lineChart(host, xs, ys, options) {
  const points = [];
  for (let i = 0; i < xs.length; i++) if (ys[i] !== null && xs[i] !== null) points.push([xs[i], ys[i]]);
  if (points.length < 2) return empty(host, "The first points are still to come");
  const { svg, width, height } = fresh(host);
  const refs = options.refs || [];
  const values = points.map((point) => point[1]).concat(refs.map((ref) => ref.at));
  let low = options.low ?? Math.min(...values), high = options.high ?? Math.max(...values);
  if (high - low < 1e-9) { low -= Math.abs(low) * .05 || .5; high += Math.abs(high) * .05 || .5; }
  const pad = (high - low) * .06;
  if (options.low === undefined) low -= pad;
  if (options.high === undefined) high += pad;
  const x0 = points[0][0], x1 = points[points.length - 1][0];
  const px = (x) => LEFT + (x - x0) / (x1 - x0 || 1) * (width - LEFT - RIGHT);
  const py = (y) => height - BOTTOM - (y - low) / (high - low) * (height - TOP - BOTTOM);
  for (const at of niceTicks(low, high, height > 240 ? 6 : 4)) {
    node("line", { x1: LEFT, x2: width - RIGHT, y1: py(at), y2: py(at), class: "rule" }, svg);
    node("text", { x: LEFT - 8, y: py(at) + 4, "text-anchor": "end", text: short(at) }, svg);
  }
  for (const at of niceTicks(x0, x1, Math.max(3, Math.floor(width / 110)))) {
    if (px(at) < width - 100) node("text", { x: px(at), y: height - 6, "text-anchor": "middle", text: short(at) }, svg);
  }
  node("text", { x: width - RIGHT, y: height - 6, "text-anchor": "end", text: `${short(x1)} samples` }, svg);
  const path = points.map(([x, y], i) => `${i ? "L" : "M"}${px(x).toFixed(1)} ${py(y).toFixed(1)}`).join("");
  // A first value far off must not flatten all that follows: what is above the chart is cut off.
  const clip = node("clipPath", { id: `${host.id}-clip` }, svg);
  node("rect", { x: 0, y: TOP - 3, width, height: height - TOP - BOTTOM + 6 }, clip);
  const drawn = node("g", { "clip-path": `url(#${host.id}-clip)` }, svg);
  if (options.area) node("path", { d: `${path}L${px(x1)} ${py(low)}L${px(x0)} ${py(low)}Z`, class: "area" }, drawn);
  node("path", { d: path, class: "line" }, drawn);
  drawRefs(svg, refs, LEFT, width, py);
  const mark = node("line", { y1: TOP, y2: height - BOTTOM, class: "mark", visibility: "hidden" }, svg);
  const last = points[points.length - 1];
  const dot = node("circle", { r: 4.5, cx: px(last[0]), cy: py(last[1]), class: "dot" }, svg);
  const format = options.format || short;
  host.setAttribute("aria-label", `${options.title}: ${format(last[1])} after ${short(last[0])} samples. Arrow keys walk along.`);
  host.chart = {
    count: points.length,
    nearest: (x) => {
      let best = 0;
      points.forEach((point, i) => { if (Math.abs(px(point[0]) - x) < Math.abs(px(points[best][0]) - x)) best = i; });
      return best;
    },
    show: (i) => {
      const [x, y] = points[i];
      mark.setAttribute("x1", px(x)); mark.setAttribute("x2", px(x)); mark.setAttribute("visibility", "visible");
      dot.setAttribute("cx", px(x)); dot.setAttribute("cy", py(y));
      tip(host, Math.min(Math.max(px(x), 70), width - 70), `${format(y)} at ${Math.round(x).toLocaleString("en")} samples`);
    },
    hide: () => {
      mark.setAttribute("visibility", "hidden");
      dot.setAttribute("cx", px(last[0])); dot.setAttribute("cy", py(last[1]));
    },
  };
  keepLooking(host);
}

// options: tone(i), refs [{ at, label }], and either name(i) of a cell of prototypes or tell(i), all that is said of a bar
function barChart(host, labels, counts, options) {
  const total = counts.reduce((sum, one) => sum + one, 0);
  if (!total) return empty(host, "Not counted yet");
  const { svg, width, height } = fresh(host);
  const refs = options.refs || [], tell = options.tell || ((i) => `${counts[i]} of ${total} at ${options.name(i)}`);
  const left = 34, high = Math.max(...counts, ...refs.map((ref) => ref.at)) * 1.08, slot = (width - left - RIGHT) / counts.length;
  const py = (y) => height - BOTTOM - y / high * (height - TOP - BOTTOM);
  for (const at of niceTicks(0, high, 4)) {
    node("line", { x1: left, x2: width - RIGHT, y1: py(at), y2: py(at), class: "rule" }, svg);
    node("text", { x: left - 8, y: py(at) + 4, "text-anchor": "end", text: short(at) }, svg);
  }
  counts.forEach((count, i) => {
    const x = left + i * slot;
    if (count) {
      node("rect", { x: x + slot * .12, width: slot * .76, y: py(count), height: Math.max(1.5, py(0) - py(count)), rx: 3, class: `bar ${options.tone(i)}` }, svg);
    }
    if (slot > 22 || i % 2 === 0) {
      node("text", { x: x + slot / 2, y: height - 7, "text-anchor": "middle", text: labels[i] }, svg);
    }
  });
  drawRefs(svg, refs, left, width, py);
  const most = counts.indexOf(Math.max(...counts));
  const found = options.tell ? "" : `: ${counts[most]} of ${total} prototypes lie at ${options.name(most)}`;
  host.setAttribute("aria-label", `${options.title}${found}. Arrow keys walk along.`);
  host.chart = {
    count: counts.length,
    nearest: (x) => Math.min(counts.length - 1, Math.max(0, Math.floor((x - left) / slot))),
    show: (i) => tip(host, Math.min(Math.max(left + (i + .5) * slot, 80), width - 80), tell(i)),
    hide: () => {},
  };
  keepLooking(host);
}

function spark(svg, ys, low) {
  const points = ys.map((y, i) => [i, y]).filter((point) => point[1] !== null).slice(-120);
  svg.replaceChildren();
  if (points.length < 2) return;
  const values = points.map((point) => point[1]);
  const min = Math.min(low ?? Infinity, ...values), max = Math.max(...values), span = max - min || 1;
  const x0 = points[0][0], x1 = points[points.length - 1][0];
  const d = points.map(([x, y], i) => `${i ? "L" : "M"}${((x - x0) / (x1 - x0) * 100).toFixed(2)} ${(23 - (y - min) / span * 20).toFixed(2)}`).join("");
  svg.setAttribute("viewBox", "0 0 100 26");
  svg.setAttribute("preserveAspectRatio", "none");
  node("path", { d, fill: "none", stroke: "var(--accent)", "stroke-width": 1.6, "vector-effect": "non-scaling-stroke", "stroke-linejoin": "round" }, svg);
}

function tip(host, x, text) {
  let made = host.querySelector(".tip");
  if (!made) { made = document.createElement("div"); made.className = "tip"; made.setAttribute("role", "status"); host.append(made); }
  made.textContent = text;
  const half = made.offsetWidth / 2, width = host.clientWidth;
  made.style.left = `${Math.max(half, Math.min(width - half, x))}px`;
}

function leave(host) {
  host.looking = null;
  host.querySelector(".tip")?.remove();
  host.chart?.hide();
}

// A chart that is drawn again under a finger keeps showing the place that was looked at.
function keepLooking(host) {
  if (host.looking === undefined) {
    const look = (i) => { host.looking = i; host.chart.show(i); };
    host.addEventListener("pointermove", (event) => {
      if (host.chart) look(host.chart.nearest(event.clientX - host.getBoundingClientRect().left));
    });
    host.addEventListener("pointerleave", () => leave(host));
    host.addEventListener("blur", () => leave(host));
    host.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, Home: -1e9, End: 1e9 }[event.key];
      if (!step || !host.chart) return;
      event.preventDefault();
      look(Math.max(0, Math.min(host.chart.count - 1, (host.looking ?? host.chart.count - 1) + step)));
    });
    host.looking = null;
  }
  if (host.looking !== null) host.chart.show(Math.min(host.looking, host.chart.count - 1));
}
