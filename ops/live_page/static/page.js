// Asks the learner for its figures and draws them; stops asking while the page is hidden.

const STATUS_MS = 1000, REST_MS = 2000;
const CELLS = ["0", ".01", ".03", ".1", ".3", ".5", "1", "2", "3", "10", "30", "30+"];
const PHASE_COLOURS = ["#0b7178", "#4a6fa5", "#8f6bb3", "#c2703d", "#c9a227", "#5b8c5a", "#a8566b", "#7b8794"];
const GLYPHS = {
  ok: "M7 0a7 7 0 1 0 0 14A7 7 0 0 0 7 0Zm-1.1 10.2L2.8 7.1l1.1-1.1 2 2 4.2-4.2 1.1 1.1z",
  watch: "M7 .6 14 13H0zM6.2 4.8v4h1.6v-4zm0 5v1.6h1.6V9.8z",
  bad: "M0 0h14v14H0zm4 2.9L2.9 4 5.9 7l-3 3L4 11.1l3-3 3 3 1.1-1.1-3-3 3-3L10 2.9l-3 3z",
  unknown: "M7 0a7 7 0 1 0 0 14A7 7 0 0 0 7 0Zm0 1.6a5.4 5.4 0 1 1 0 10.8A5.4 5.4 0 0 1 7 1.6Z",
};
const $ = (id) => document.getElementById(id);
const whole = (value) => value === null || value === undefined ? "-" : Math.round(value).toLocaleString("en");
let status = null, history = null, clusters = null, happened = [], lostSince = null;

function make(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function glyph(state) {
  const svg = node("svg", { viewBox: "0 0 14 14", class: `glyph ${state}`, role: "img", "aria-label": state });
  node("path", { d: GLYPHS[state], fill: "currentColor", "fill-rule": "evenodd" }, svg);
  return svg;
}

function duration(seconds) {
  if (!isFinite(seconds)) return "";
  for (const [size, unit] of [[86400, "days"], [3600, "h"], [60, "min"]]) if (seconds >= 2 * size) return `${Math.round(seconds / size)} ${unit}`;
  return `${Math.max(1, Math.round(seconds))} s`;
}

// A time of any size with the unit that people would use: 0.4 ms, 230 ms, 1.5 s, 113 s, 5 min.
function timed(seconds) {
  if (seconds < 1) return `${short(seconds * 1000)} ms`;
  return seconds < 120 ? `${+seconds.toPrecision(3)} s` : duration(seconds);
}

function headline() {
  const of = (state) => status.verdicts.filter((verdict) => verdict.state === state);
  const names = (list) => list.map((verdict) => verdict.title.toLowerCase()).join(", ").replace(/, ([^,]*)$/, " and $1");
  if (of("bad").length) return [`Needs attention: ${names(of("bad"))}.`, of("bad")[0].text];
  if (of("watch").length) return [`Keep an eye on ${names(of("watch"))}.`, of("watch")[0].text];
  if (status.state === "stopping") return ["The run is stopping.", "It saves a checkpoint and publishes its last snapshot."];
  if (status.state === "waiting") return ["Waiting for records.", status.verdicts.find((verdict) => verdict.name === "stream").text];
  if (!of("ok").some((verdict) => verdict.name === "loss")) return ["Warming up.", "A few more steps are needed before anything can be said."];
  if (of("unknown").some((verdict) => verdict.name === "balance")) return ["It learns.", "Whether the clusters are balanced shows once the usage window is full."];
  return ["It learns, and its clusters are balanced.", "Nothing asks for your attention."];
}

function drawStatus() {
  const name = status.run_dir.split("/").filter(Boolean).pop() || status.run;
  document.title = `${name}: ${status.state}`;
  $("run").textContent = status.run_dir;
  $("state").dataset.state = status.state;
  $("state").querySelector("b").textContent = status.state;
  const [first, second] = headline();
  if ($("headline").textContent !== first) $("headline").textContent = first;
  if ($("subline").textContent !== second) $("subline").textContent = second;
  drawProgress();
  drawTiles();
  drawVerdicts();
  drawPhases();
  drawFacts();
}

function drawProgress() {
  const { samples, total_samples: total, rate } = status;
  const parts = [`${whole(samples)}${total ? ` of ${whole(total)}` : ""} samples`];
  if (rate) parts.push(`${short(rate)} a second`);
  if (total && rate && status.state === "learning") parts.push(`about ${duration((total - samples) / rate)} left`);
  $("progress").hidden = false;
  $("bar").hidden = !total;
  if (total) {
    const percent = Math.min(100, 100 * samples / total);
    $("bar").firstElementChild.style.width = `${percent}%`;
    $("bar").setAttribute("aria-valuenow", percent.toFixed(0));
  }
  $("progress-text").textContent = parts.join("  ·  ");
  const team = [];
  if (status.ranks > 1) team.push(`${status.ranks} ranks learn together; all counts are of all of them`);
  if (status.restarts) team.push(`${whole(status.restarts)} reader process${status.restarts > 1 ? "es" : ""} died and replaced`);
  $("team").hidden = !team.length;
  $("team").textContent = team.join("  ·  ");
}

function drawTiles() {
  const column = (name) => history ? history[name] : [];
  const shot = status.snapshot.version;
  const tiles = [
    ["Loss / ln K", status.loss_over_ln_k?.toFixed(3) ?? "-", "", column("loss_over_ln_k")],
    ["Images a second", short(status.rate || null), "", column("rate"), 0],
    ["Prototypes in use", whole(status.usage_perplexity), `of ${whole(status.prototypes)}`, column("usage_perplexity")],
    ["Dead prototypes", whole(status.dead_prototypes), "", column("dead_prototypes"), 0],
    ["Lag", whole(status.lag), "records", column("lag"), 0],
    ["Snapshot", shot ? `v${shot}` : "-", shot ? `${whole(status.snapshot.samples)} samples` : "none yet", null],
  ];
  const host = $("tiles");
  while (host.children.length < tiles.length) {
    const tile = make("div", "tile");
    tile.append(make("div", "label"), make("div", "value"), node("svg", { "aria-hidden": "true" }));
    host.append(tile);
  }
  tiles.forEach(([label, value, unit, ys, low], i) => {
    const [labelled, shown, drawn] = host.children[i].children;
    labelled.textContent = label;
    shown.replaceChildren(value, " ", make("small", "", unit));
    if (ys) spark(drawn, ys, low);
  });
}

function drawVerdicts() {
  const order = { bad: 0, watch: 1, ok: 2, unknown: 3 };
  const sorted = [...status.verdicts].sort((a, b) => order[a.state] - order[b.state]);
  const host = $("verdicts"), known = new Map([...host.children].map((row) => [row.dataset.name, row]));
  const rows = sorted.map((verdict) => {
    const row = known.get(verdict.name) || verdictRow(verdict.name);
    if (row.dataset.state !== verdict.state) {
      row.dataset.state = verdict.state;
      row.querySelector("svg").replaceWith(glyph(verdict.state));
      row.firstChild.open = verdict.state === "bad" || verdict.state === "watch";
    }
    row.querySelector(".title").textContent = verdict.title;
    row.querySelector(".value").textContent = verdict.value;
    row.querySelector(".text").textContent = verdict.text;
    return row;
  });
  if (rows.some((row, i) => host.children[i] !== row)) host.replaceChildren(...rows);
}

// A row opens to say what it means; one that needs attention is open by itself.
function verdictRow(name) {
  const row = make("li"), details = make("details"), summary = make("summary");
  row.dataset.name = name;
  summary.append(glyph("unknown"), make("span", "title"), make("span", "value"));
  details.append(summary, make("p", "text"));
  row.append(details);
  return row;
}

function drawPhases() {
  const phases = Object.entries(status.phases).filter(([, seconds]) => seconds > 0).sort((a, b) => b[1] - a[1]);
  const total = phases.reduce((sum, [, seconds]) => sum + seconds, 0);
  const stack = make("div", "stack"), key = make("div", "key");
  phases.forEach(([name, seconds], i) => {
    const part = make("i");
    part.style.background = PHASE_COLOURS[i % PHASE_COLOURS.length];
    const dot = part.cloneNode();
    part.style.flex = `${100 * seconds / total} 0 0`;
    stack.append(part);
    key.append(dot, make("span", "", name), make("span", "", `${Math.round(100 * seconds / total)} %  ·  ${timed(seconds)}`));
  });
  $("phases").replaceChildren(...(total ? [stack, key] : [make("p", "note", "No step is done yet.")]));
  const skipped = Object.entries(status.skipped).sort((a, b) => b[1] - a[1]);
  $("skipped").textContent = skipped.length ? skipped.map(([reason, count]) => `${reason} ${whole(count)}`).join("  ·  ") : "None.";
}

function drawFacts() {
  const shot = status.snapshot, saved = status.checkpoint;
  const facts = {
    ...status.facts,
    prototypes: whole(status.prototypes),
    updates: whole(status.updates),
    "learning rate": short(status.learning_rate),
    checkpoint: saved.time ? `${saved.result} at ${whole(saved.samples)} samples, ${duration(status.now - saved.time)} ago` : "none yet",
    snapshot: shot.version ? `v${shot.version} ${shot.digest.slice(0, 12)}, ${duration(status.now - shot.time)} ago` : "none yet",
    run: status.run,
    directory: status.run_dir,
  };
  $("facts").replaceChildren(...Object.entries(facts).flatMap(([name, value]) => [make("dt", "", name), make("dd", "", value)]));
}

function drawHistory() {
  const xs = history.samples, k = status.prototypes;
  const ratios = history.loss_over_ln_k.filter((value) => value !== null);
  const high = Math.max(1.02, ...ratios.slice(Math.min(ratios.length - 1, Math.ceil(ratios.length / 25))));
  lineChart($("chart-loss"), xs, history.loss_over_ln_k, {
    title: "Loss against ln K", high, refs: [{ at: 1, label: "ln K: nothing learned" }], format: (value) => value.toFixed(3),
  });
  lineChart($("chart-use"), xs, history.usage_perplexity, {
    title: "Prototypes in use", low: 0, high: k * 1.08, area: true, refs: [{ at: k, label: `K = ${whole(k)}` }], format: (value) => `${Math.round(value)} of ${whole(k)}`,
  });
  lineChart($("chart-lag"), xs, history.lag, { title: "Lag", low: 0, area: true, format: (value) => `${whole(value)} unread` });
  lineChart($("chart-rate"), xs, history.rate, { title: "Images a second", low: 0, area: true, format: (value) => `${short(value)} a second` });
}

function drawHistogram() {
  const even = (i) => i === 0 ? "no use at all" : i === CELLS.length - 1 ? "over 30 even shares" : `up to ${CELLS[i].replace(/^\./, "0.")} even share${+CELLS[i] > 1 ? "s" : ""}`;
  barChart($("chart-hist"), CELLS, clusters.histogram, {
    title: "Usage of the prototypes", name: even, tone: (i) => i <= 2 ? "low" : i >= 9 ? "high" : "",
  });
}

function eventTone(event) {
  if (["error", "not finite", "stale_epoch"].includes(event.kind) || (event.kind === "checkpoint" && !event.text.startsWith("ok"))) return "bad";
  return ["waiting", "restart", "rewind", "re-seed", "unhealthy", "superseded", "stopping"].includes(event.kind) ? "watch" : "plain";
}

function drawEvents(events) {
  const kinds = [...new Set(events.map((event) => event.kind))].sort(), chosen = $("kinds").value;
  if (kinds.join() !== $("kinds").dataset.kinds) {
    $("kinds").dataset.kinds = kinds.join();
    $("kinds").replaceChildren(...["", ...kinds].map((kind) => Object.assign(make("option", "", kind || "all kinds"), { value: kind })));
    $("kinds").value = kinds.includes(chosen) ? chosen : "";
  }
  const rows = events.filter((event) => !$("kinds").value || event.kind === $("kinds").value).map((event) => {
    const row = make("li", eventTone(event)), text = make("span"), when = new Date(1000 * event.time);
    const time = make("time", "", when.toLocaleTimeString("en", { hour12: false }));
    time.dateTime = when.toISOString();
    time.title = `${when.toLocaleString("en", { hour12: false })}, ${whole(event.samples)} samples`;
    text.append(make("b", "", event.kind), ` ${event.text}`);
    row.append(time, text);
    return row;
  });
  $("events").replaceChildren(...(rows.length ? rows : [make("li", "note", "Nothing yet.")]));
}

async function ask(what) {
  const answer = await fetch(`/api/v1/${what}`, { cache: "no-store" });
  if (!answer.ok) throw new Error(`${what}: ${answer.status}`);
  return answer.json();
}

function lost(yes) {
  if (!yes) { lostSince = null; $("lost").hidden = true; return; }
  lostSince ??= new Date();
  $("state").dataset.state = "lost";
  $("state").querySelector("b").textContent = "not reachable";
  $("lost").textContent = `The learner does not answer since ${lostSince.toLocaleTimeString("en", { hour12: false })}: it has ended, or the connection is cut. Figures below are its last ones.`;
  $("lost").hidden = false;
}

async function every(ms, work) {
  for (;;) {
    if (!document.hidden) {
      try { await work(); lost(false); } catch (error) { console.warn(error.message); lost(true); }
    }
    await new Promise((resolve) => setTimeout(resolve, ms));
  }
}

async function loadStatus() { status = await ask("status"); drawStatus(); }
async function loadRest() {
  if (!status) return;
  const { sort, rising, offset } = view;
  const [past, page, events] = await Promise.all([ask("history"), askClusters(), ask("events?count=200"), loadHeatmap(), loadOpened()]);
  history = past; happened = events;
  const wanted = sort === view.sort && rising === view.rising && offset === view.offset; // else `show` is bringing others
  if (wanted) clusters = page;
  drawHistory(); drawEvents(happened); drawTiles();
  if (clusters) drawHistogram();
  if (wanted) drawClusters();
}

// The map is asked for only when it has changed.
async function loadHeatmap() {
  const order = $("heat-order").value;
  if (heat && heat.order === order && heat.reports === status.usage_reports && heat.started === status.started) return;
  const answer = await ask(`heatmap?order=${order}`);
  takeHeatmap(Object.assign(answer, { started: status.started }));
  drawHeatmap();
}

listenClusters();
listenHeatmap();
$("heat-order").addEventListener("change", () => loadHeatmap().catch((error) => console.warn(error.message)));
$("kinds").addEventListener("change", () => drawEvents(happened));
new ResizeObserver(() => { if (history && clusters) { drawHistory(); drawHistogram(); drawHeatmap(); } }).observe($("main"));

loadStatus().then(loadRest).catch(() => lost(true)).finally(() => {
  followHash();
  every(STATUS_MS, loadStatus);
  every(REST_MS, loadRest);
});
