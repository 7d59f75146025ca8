// All prototypes in an order, a page at a time, and one of them from close by.

const SHOWN = matchMedia("(max-width: 640px)").matches ? 12 : 24;
const ORDERS = {
  size: ["Largest first", "Smallest first"], change: ["Growing first", "Shrinking first"], generation: ["Newest first", "Oldest first"],
  cosine: ["Closest pairs first", "Most apart first"], number: ["From #0 up", "From the last down"],
};
const view = { sort: "size", rising: false, offset: 0 };
let opened = null; // what is known of the prototype that is open

const shareText = (usage) => `${100 * usage >= 10 ? (100 * usage).toFixed(1) : +(100 * usage).toPrecision(2)} %`;
function changeText(change, k) {
  const even = change * k, size = Math.abs(even);
  return size < .005 ? "±0" : `${even > 0 ? "▲" : "▼"} ${size >= 10 ? size.toFixed(0) : size.toFixed(2)}`;
}

// Pictures of a cluster lie side by side in one image; each tile shows its part of it. How many there are is read from
// the image, which may be newer than the figures; the old pictures stay until the new ones are there.
function shots(host, cluster, most) {
  const address = `/api/v1/prototypes/${cluster.id}.png?v=${Math.round(status.started)}.${cluster.stamp}`;
  if (host.dataset.address === address) return;
  host.dataset.address = address;
  const tiles = (count) => {
    while (host.children.length > count) host.lastChild.remove();
    while (host.children.length < count) host.append(make("span", "shot"));
  };
  if (!cluster.images) return tiles(0);
  if (!host.children.length) tiles(Math.min(most, cluster.images));
  const ready = new Image();
  ready.onload = () => {
    if (host.dataset.address !== address) return;
    const images = Math.max(1, Math.round(ready.naturalWidth / ready.naturalHeight));
    tiles(Math.min(most, images));
    [...host.children].forEach((tile, i) => {
      tile.style.backgroundImage = `url("${address}")`;
      tile.style.backgroundSize = `${100 * images}% 100%`;
      tile.style.backgroundPosition = `${images > 1 ? 100 * i / (images - 1) : 0}% 0`;
    });
  };
  ready.onerror = () => { if (host.dataset.address === address) delete host.dataset.address; };
  ready.src = address;
}

function card(id) {
  const made = make("button", "cluster");
  made.type = "button";
  made.dataset.id = id;
  const top = make("span", "top"), more = make("span", "more"), meter = make("span", "meter");
  top.append(make("span", "id", `#${id}`), make("span", "share"));
  meter.append(make("i"));
  made.append(top, meter, make("span", "shots"), more);
  made.addEventListener("click", () => look(id));
  return made;
}

function fill(one, cluster, largest) {
  const k = clusters.prototypes, share = shareText(cluster.usage), more = [];
  one.querySelector(".share").replaceChildren(share, make("small", "", " of images"));
  one.querySelector(".meter i").style.width = `${largest ? 100 * cluster.usage / largest : 0}%`;
  if (cluster.change !== null) more.push(changeText(cluster.change, k));
  if (cluster.generation) more.push(`re-seeded ${cluster.generation}×`);
  if (view.sort === "cosine" && cluster.cosine !== null) more.push(`cosine ${cluster.cosine.toFixed(2)}`);
  if (!cluster.images) more.push(cluster.usage ? "no images kept yet" : "not in use");
  one.querySelector(".more").textContent = more.join("  ·  ");
  one.setAttribute("aria-label", `Cluster ${cluster.id}, ${share} of images, number ${cluster.rank} by size. Look closer.`);
  shots(one.querySelector(".shots"), cluster, 12);
}

// `asked`: a user chose another order or page; else nothing moves under a pointer or away from the keyboard.
function drawClusters(asked = false) {
  const grid = $("clusters"), known = new Map([...grid.children].map((one) => [+one.dataset.id, one]));
  const held = !asked && grid.children.length > 0 && (grid.contains(document.activeElement) || grid.matches(":hover"));
  const largest = Math.max(...clusters.rows.map((cluster) => cluster.usage));
  const cards = clusters.rows.map((cluster) => {
    const one = known.get(cluster.id) || card(cluster.id);
    fill(one, cluster, largest);
    return one;
  });
  if (!held && (cards.some((one, i) => grid.children[i] !== one) || grid.children.length !== cards.length)) grid.replaceChildren(...cards);
  const any = clusters.rows.some((cluster) => cluster.images);
  const since = clusters.changed_since;
  $("clusters-note").textContent = held ? "The order is kept while you are here. Most typical images first."
    : any ? `Most typical images first. ▲ and ▼: change in even shares${since === null ? "" : ` since ${whole(since)} samples`}.`
    : clusters.thumb_px ? "Images appear with the first steps." : "This run carries no thumbnails (reader.thumbnail_px is 0).";
  drawOrder();
}

function drawOrder() {
  const { prototypes: k, rows } = clusters, last = view.offset + rows.length;
  for (const option of $("sort").options) option.disabled = !clusters.sorts.includes(option.value);
  $("sort").value = view.sort;
  $("rising").textContent = ORDERS[view.sort][+view.rising];
  $("pages").textContent = rows.length ? `${whole(view.offset + 1)} to ${whole(last)} of ${whole(k)}` : `of ${whole(k)}`;
  $("page-back").disabled = view.offset === 0;
  $("page-on").disabled = last >= k;
  $("goto").max = k - 1;
}

const askClusters = () => ask(`prototypes?sort=${view.sort}&rising=${+view.rising}&offset=${view.offset}&count=${SHOWN}`);

// Another order or page, at once.
async function show(change) {
  Object.assign(view, change);
  try {
    const { sort, rising, offset } = view, answer = await askClusters();
    if (sort !== view.sort || rising !== view.rising || offset !== view.offset) return; // another choice was quicker
    clusters = answer;
    drawClusters(true);
    if (change.offset && change.sort) $("h-clusters").scrollIntoView();
  } catch (error) { console.warn(error.message); lost(true); }
}

const hashed = () => /^#cluster-(\d+)$/.exec(location.hash)?.[1];

// Opens a prototype, or turns to it; the address keeps which one it is.
function look(id) {
  if (hashed() === `${id}`) return lookAt(id);
  if ($("closer").open) { window.history.replaceState(null, "", `#cluster-${id}`); lookAt(id); } else location.hash = `cluster-${id}`;
}

function lookAt(id) {
  const dialog = $("closer"), tiles = $("closer-tiles");
  if (dialog.dataset.id !== `${id}`) {
    opened = null;
    dialog.dataset.id = id;
    tiles.replaceChildren();
    delete tiles.dataset.address;
    $("closer-title").textContent = `Cluster #${id}`;
    $("closer-note").textContent = "";
    $("closer-near").replaceChildren();
    leave($("chart-closer"));
  }
  if (!dialog.open) dialog.showModal();
  return loadOpened().catch((error) => { console.warn(error.message); });
}

async function loadOpened() {
  const dialog = $("closer");
  if (!dialog.open) return;
  const id = dialog.dataset.id, answer = await fetch(`/api/v1/prototypes/${id}`, { cache: "no-store" });
  if (dialog.dataset.id !== id || !dialog.open) return;
  if (answer.status === 404) { $("closer-note").textContent = "There is no prototype of this number."; return; }
  if (!answer.ok) throw new Error(`prototypes/${id}: ${answer.status}`);
  opened = await answer.json();
  if (dialog.dataset.id === `${opened.id}` && status) drawOpened();
}

function drawOpened() {
  const one = opened, k = one.prototypes, parts = [`${shareText(one.usage)} of images: ${short(one.usage * k)} even shares`, `number ${whole(one.rank)} of ${whole(k)} by size`];
  if (one.change !== null) parts.push(`${changeText(one.change, k)} since ${whole(one.changed_since)} samples`);
  if (one.generation !== null) parts.push(one.generation ? `re-seeded ${one.generation} time${one.generation > 1 ? "s" : ""}` : "never re-seeded");
  $("closer-note").textContent = parts.join("  ·  ");
  $("closer-prev").disabled = one.busier === null;
  $("closer-next").disabled = one.quieter === null;
  lineChart($("chart-closer"), one.trend.samples, one.trend.even_shares, {
    title: `Usage of cluster ${one.id} in even shares`, low: 0, area: true, refs: [{ at: 1, label: "even share" }], format: (value) => `${short(value)} even shares`,
  });
  shots($("closer-tiles"), one, 48);
  $("closer-images").textContent = one.images ? `Its ${one.images} most typical images` : "No images of it are kept yet";
  drawNear(one);
}

function drawNear(one) {
  const host = $("closer-near"), known = new Map([...host.children].map((near) => [+near.dataset.id, near]));
  $("closer-near-note").textContent = one.nearest.length ? `Nearest prototypes by cosine, as of ${whole(one.nearest_at)} samples` : "Its nearest prototypes are known from the first snapshot on";
  const rows = one.nearest.map((other) => {
    const made = known.get(other.id) || card(other.id);
    made.querySelector(".share").textContent = other.cosine.toFixed(2);
    made.querySelector(".meter").hidden = true;
    made.querySelector(".more").textContent = shareText(other.usage);
    made.setAttribute("aria-label", `Cluster ${other.id}, cosine ${other.cosine.toFixed(2)}. Look closer.`);
    shots(made.querySelector(".shots"), other, 3);
    return made;
  });
  if (rows.some((row, i) => host.children[i] !== row) || host.children.length !== rows.length) host.replaceChildren(...rows);
}

function turn(to) { if (to !== null && to !== undefined) look(to); }

function followHash() {
  const id = hashed();
  if (id !== undefined) lookAt(+id); else if ($("closer").open) $("closer").close();
}

function listenClusters() {
  $("sort").addEventListener("change", () => show({ sort: $("sort").value, rising: false, offset: 0 }));
  $("rising").addEventListener("click", () => show({ rising: !view.rising, offset: 0 }));
  $("page-back").addEventListener("click", () => show({ offset: Math.max(0, view.offset - SHOWN) }));
  $("page-on").addEventListener("click", () => show({ offset: view.offset + SHOWN }));
  $("goto-form").addEventListener("submit", (event) => {
    event.preventDefault();
    if ($("goto").value !== "") look(+$("goto").value);
  });
  $("closer-close").addEventListener("click", () => $("closer").close());
  $("closer-prev").addEventListener("click", () => turn(opened?.busier));
  $("closer-next").addEventListener("click", () => turn(opened?.quieter));
  $("closer").addEventListener("click", (event) => { if (event.target === $("closer")) $("closer").close(); });
  // Told a moment after it closed: by then the address may name another one, or it is open again.
  $("closer").addEventListener("close", () => {
    const dialog = $("closer");
    if (!dialog.open && hashed() === dialog.dataset.id) window.history.replaceState(null, "", location.pathname + location.search);
  });
  $("closer").addEventListener("keydown", (event) => {
    if (event.defaultPrevented) return; // a chart has taken it
    if (event.key === "ArrowLeft") turn(opened?.busier);
    if (event.key === "ArrowRight") turn(opened?.quieter);
  });
  addEventListener("hashchange", followHash);
}
