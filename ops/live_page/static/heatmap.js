// Usage of the prototypes over time as coloured cells, read by mouse, touch and arrow keys.

const HEAT_STOPS = [-3.32, -1.66, 0, 1.66, 3.32]; // log2 of .1, .3, 1, 3 and 10 even shares
let heat = null;

function even(map, byte) { return byte ? 2 ** ((byte - 1) / map.per_octave + map.lowest_log2) : 0; }

// [256] colours of the bytes, of the scheme that is on now.
function heatColours(map) {
  const style = getComputedStyle(document.documentElement);
  const rgb = (name) => {
    const hex = style.getPropertyValue(name).trim().slice(1);
    return [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16));
  };
  const stops = HEAT_STOPS.map((_, i) => rgb(`--heat-${i}`)), last = stops.length - 1;
  return Array.from({ length: 256 }, (_, byte) => {
    if (!byte) return rgb("--heat-none");
    const at = (Math.log2(even(map, byte)) - HEAT_STOPS[0]) / (HEAT_STOPS[1] - HEAT_STOPS[0]);
    const below = Math.max(0, Math.min(last - 1, Math.floor(at))), part = Math.max(0, Math.min(1, at - below));
    return stops[below].map((one, i) => Math.round(one + part * (stops[below + 1][i] - one)));
  });
}

// Takes an answer in; what hangs on it alone is worked out here, once.
function takeHeatmap(map) {
  map.bytes = Uint8Array.from(atob(map.cells), (letter) => letter.charCodeAt(0));
  map.first = [];
  map.rows.reduce((sum, count) => { map.first.push(sum); return sum + count; }, 0);
  heat = map;
}

function drawHeatmap() {
  const host = $("heat");
  if (!heat || !heat.samples.length) { host.querySelector("canvas").hidden = true; return empty(host, "The first report is still to come"); }
  const map = heat, columns = map.samples.length, rows = map.rows.length;
  const { svg, width, height } = fresh(host);
  const w = Math.max(40, width - LEFT - RIGHT), h = height - BOTTOM - 4;
  const ends = map.samples, start = columns > 1 ? Math.max(0, ends[0] - (ends[1] - ends[0])) : 0, span = ends[columns - 1] - start || 1;
  const px = (samples) => (samples - start) / span * w;
  paint(host.querySelector("canvas"), map, px, w, h);
  const named = map.order === "size" ? [1, Math.ceil(map.prototypes / 2), map.prototypes] : [0, Math.floor(map.prototypes / 2), map.prototypes - 1];
  named.forEach((name, i) => node("text", { x: LEFT - 8, y: [11, 4 + h / 2, h + 1][i], "text-anchor": "end", text: short(name) }, svg));
  for (const at of niceTicks(start, ends[columns - 1], Math.max(3, Math.floor(width / 110)))) {
    if (LEFT + px(at) < width - 100) node("text", { x: LEFT + px(at), y: height - 6, "text-anchor": at ? "middle" : "start", text: short(at) }, svg);
  }
  node("text", { x: width - RIGHT, y: height - 6, "text-anchor": "end", text: `${short(ends[columns - 1])} samples` }, svg);
  const unused = map.bytes.filter((byte, i) => i % columns === columns - 1 && !byte).length;
  host.setAttribute("aria-label", `Usage of ${whole(map.prototypes)} prototypes over time in ${rows} rows and ${columns} columns, ${unused || "no"} row${unused === 1 ? "" : "s"} without use at the end. Arrow keys walk, Enter opens.`);
  host.chart = {
    rows, columns,
    at: (x, y) => {
      const seen = start + (x - LEFT) / w * span, column = ends.findIndex((end) => end >= seen);
      return [Math.max(0, Math.min(rows - 1, Math.floor(y / h * rows))), column < 0 ? columns - 1 : column];
    },
    show: (row, column) => {
      const box = host.querySelector(".cell") || host.appendChild(make("i", "cell"));
      const left = column ? px(ends[column - 1]) : 0, right = px(ends[column]);
      Object.assign(box.style, { left: `${LEFT + left - 1}px`, top: `${row / rows * h - 1}px`, width: `${right - left + 2}px`, height: `${h / rows + 2}px` });
      const value = even(map, map.bytes[row * columns + column]);
      const much = value ? `${short(value)} even shares${map.rows[row] > 1 ? " each" : ` (${short(100 * value / map.prototypes)} %)`}` : "no use";
      tip(host, LEFT + right, `${rowName(map, row)}: ${much} at ${whole(ends[column])} samples`);
      host.querySelector(".tip").classList.toggle("low", row / rows < .3);
    },
    hide: () => host.querySelector(".cell")?.remove(),
    open: (row) => map.ids ? look(map.ids[row]) : show({ sort: map.order, rising: false, offset: map.first[row] }),
  };
  if (host.looking) host.chart.show(Math.min(host.looking[0], rows - 1), Math.min(host.looking[1], columns - 1));
}

function rowName(map, row) {
  const from = map.first[row], to = from + map.rows[row] - 1;
  if (map.ids) return `#${map.ids[row]}`;
  return map.order === "size" ? `Numbers ${whole(from + 1)} to ${whole(to + 1)} by size` : `#${from} to #${to}`;
}

// A picture of one pixel a cell, stretched column by column to when each was.
function paint(canvas, map, px, w, h) {
  const columns = map.samples.length, rows = map.rows.length, scale = Math.min(3, window.devicePixelRatio || 1);
  const colours = heatColours(map), small = new ImageData(columns, rows);
  map.bytes.forEach((byte, i) => { small.data.set(colours[byte], 4 * i); small.data[4 * i + 3] = 255; });
  const source = new OffscreenCanvas(columns, rows);
  source.getContext("2d").putImageData(small, 0, 0);
  canvas.hidden = false;
  canvas.width = Math.round(w * scale); canvas.height = Math.round(h * scale);
  Object.assign(canvas.style, { left: `${LEFT}px`, width: `${w}px`, height: `${h}px` });
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  for (let i = 0; i < columns; i++) {
    const left = Math.round(scale * (i ? px(map.samples[i - 1]) : 0)), right = Math.round(scale * px(map.samples[i]));
    context.drawImage(source, i, 0, 1, rows, left, 0, Math.max(1, right - left), canvas.height);
  }
}

function listenHeatmap() {
  const host = $("heat");
  const at = (event) => {
    const box = host.getBoundingClientRect();
    return host.chart?.at(event.clientX - box.left, event.clientY - box.top);
  };
  const read = (place) => { host.looking = place; host.chart.show(...place); };
  host.addEventListener("pointermove", (event) => { if (host.chart) read(at(event)); });
  host.addEventListener("pointerleave", () => leave(host));
  host.addEventListener("blur", () => leave(host));
  host.addEventListener("click", (event) => { if (host.chart) host.chart.open(at(event)[0]); });
  host.addEventListener("keydown", (event) => {
    const step = {
      ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0],
      Home: [0, -1e9], End: [0, 1e9], PageUp: [-10, 0], PageDown: [10, 0], Enter: [0, 0],
    }[event.key];
    if (!step || !host.chart) return;
    event.preventDefault();
    const { rows, columns } = host.chart, [row, column] = host.looking ?? [step[0] > 0 ? -1 : 0, columns - 1];
    const place = [Math.max(0, Math.min(rows - 1, row + step[0])), Math.max(0, Math.min(columns - 1, column + step[1]))];
    if (event.key === "Enter") host.chart.open(place[0]); else read(place);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawHeatmap);
}
