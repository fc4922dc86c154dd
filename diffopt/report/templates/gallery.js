"use strict";
(() => {
  const list = document.getElementById("pairs");
  const viewer = document.getElementById("viewer");
  const tools = document.querySelector("form.tools");
  if (!list || !viewer || !tools) return;
  const pairs = [...list.children].map((item) => ({
    item,
    prompt: item.querySelector("h3").textContent,
    ranks: item.dataset.ranks.split(" ").map(Number),
    views: views([...item.querySelectorAll("figure[data-kind]")]),
  }));

  // What can be compared of a pair: its pictures, and of a video each of its frames.
  function views(figures) {
    const found = new Map();
    for (const figure of figures) {
      const frame = figure.dataset.frame || "";
      found.set(frame, [...(found.get(frame) || []), figure]);
    }
    return found;
  }
  let shown = pairs;

  // Order and filter.

  const { order, filter, count } = tools.elements;
  const plain = (text) => text.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase();

  function arrange() {
    const words = plain(filter.value).split(/\s+/).filter(Boolean);
    const by = order.selectedIndex;
    shown = [...pairs].sort((a, b) => a.ranks[by] - b.ranks[by]);
    list.append(...shown.map((pair) => pair.item));
    for (const pair of shown) pair.item.hidden = !words.every((word) => plain(pair.prompt).includes(word));
    shown = shown.filter((pair) => !pair.item.hidden);
    count.textContent = `${shown.length} of ${pairs.length}`;
  }
  order.addEventListener("change", arrange);
  filter.addEventListener("input", arrange);
  tools.addEventListener("submit", (event) => event.preventDefault());
  tools.hidden = false;
  arrange(); // a browser that reloads keeps what was chosen

  // The viewer: two pictures, one over the other, cut at a line.

  const byId = (id) => document.getElementById(id);
  const [stage, cut, right, frame] = ["stage", "viewer-cut", "viewer-right", "viewer-frame"].map(byId);
  const [under, over] = [byId("under").firstChild, byId("over").firstChild];
  const LARGEST = 32;
  let current = null;
  let zoom = 1, x = 0, y = 0; // the picture's left upper corner, in pixels of the stage

  function draw() {
    const { width, height } = stage.getBoundingClientRect();
    zoom = Math.min(Math.max(zoom, 1), LARGEST);
    x = Math.min(0, Math.max(x, width * (1 - zoom)));
    y = Math.min(0, Math.max(y, height * (1 - zoom)));
    stage.style.setProperty("--cut", `${cut.value}%`);
    stage.style.setProperty("--transform", `translate(${x}px, ${y}px) scale(${zoom})`);
    stage.classList.toggle("zoomed", zoom > 1);
    byId("viewer-zoom").textContent = `${Number(zoom.toFixed(1))}\u00d7`;
    const natural = under.naturalWidth || 1;
    stage.classList.toggle("pixels", (width * zoom) / natural > 3);
  }

  function put(image, figure) {
    const there = figure.querySelector("img");
    image.src = figure.querySelector("a").getAttribute("href") || there.src;
    image.alt = there.alt;
  }

  function choose() {
    const figures = current.views.get(frame.value);
    const [left] = figures;
    const other = figures[Number(right.value)] || left;
    put(under, left);
    put(over, other);
    stage.querySelector(".left").textContent = left.dataset.kind;
    stage.querySelector(".right").textContent = other === left ? "" : other.dataset.kind;
    byId("viewer-left").textContent = left.dataset.kind;
  }

  function show(pair, kind, number = frame.value) {
    const wanted = kind || right.selectedOptions[0]?.textContent;
    current = pair;
    byId("viewer-prompt").textContent = pair.prompt;
    byId("viewer-place").textContent = `${shown.indexOf(pair) + 1} of ${shown.length}`;
    byId("viewer-values").replaceChildren(...[...pair.item.querySelector(".values").children].map((x) => x.cloneNode(true)));
    const numbers = [...pair.views.keys()];
    number = pair.views.has(number) ? number : numbers[0];
    frame.replaceChildren(...numbers.map((n) => new Option(n ? `frame ${n}` : "four frames", n, false, n === number)));
    frame.parentElement.hidden = numbers.length === 1;
    const figures = pair.views.get(number);
    const others = figures.map((figure, i) => [figure.dataset.kind, i]).slice(1);
    right.replaceChildren(...others.map(([name, i]) => new Option(name, i, false, name === wanted)));
    right.disabled = cut.disabled = others.length === 0;
    choose();
    const image = figures[0].querySelector("img");
    shape(image.getAttribute("width"), image.getAttribute("height"));
    if (!viewer.open) viewer.showModal();
    draw();
  }

  function shape(width, height) {
    if (!(width > 0 && height > 0)) return;
    stage.style.setProperty("--ratio", `${width} / ${height}`);
    stage.style.setProperty("--aspect", width / height);
  }

  function magnify(factor, at) {
    const { width, height } = stage.getBoundingClientRect();
    const [px, py] = at || [width / 2, height / 2];
    const next = Math.min(Math.max(zoom * factor, 1), LARGEST);
    [x, y] = [px - ((px - x) * next) / zoom, py - ((py - y) * next) / zoom];
    zoom = next;
    draw();
  }

  function step(by) {
    const next = shown[shown.indexOf(current) + by];
    if (next) show(next);
  }

  function move(by) {
    cut.value = Number(cut.value) + by;
    draw();
  }

  const actions = {
    previous: () => step(-1),
    next: () => step(1),
    close: () => viewer.close(),
    in: () => magnify(1.5),
    out: () => magnify(1 / 1.5),
    fit: () => { zoom = 1; draw(); },
  };
  const keys = {
    n: actions.next, p: actions.previous, "+": actions.in, "=": actions.in, "-": actions.out, 0: actions.fit,
    ArrowLeft: () => move(-2), ArrowRight: () => move(2), Home: () => move(-100), End: () => move(100),
  };

  function opened(event) {
    const figure = event.target.closest("figure[data-kind]");
    if (!figure || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey || event.button) return;
    event.preventDefault();
    const pair = pairs.find((pair) => pair.item.contains(figure));
    const number = figure.dataset.frame || "";
    show(pair, pair.views.get(number).indexOf(figure) > 0 ? figure.dataset.kind : undefined, number);
  }
  list.addEventListener("click", opened);
  list.addEventListener("keydown", (event) => { if (event.key === "Enter" && !event.target.href) opened(event); });

  viewer.addEventListener("click", (event) => actions[event.target.dataset.do]?.());
  viewer.addEventListener("keydown", (event) => {
    if (event.target.tagName === "SELECT" || event.ctrlKey || event.metaKey || event.altKey) return;
    const action = keys[event.key];
    if (action) { event.preventDefault(); action(); }
  });
  cut.addEventListener("input", draw);
  right.addEventListener("change", choose);
  frame.addEventListener("change", () => show(current));
  under.addEventListener("load", () => { shape(under.naturalWidth, under.naturalHeight); draw(); });
  over.addEventListener("load", draw);
  new ResizeObserver(() => { if (viewer.open) draw(); }).observe(stage);

  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    const box = stage.getBoundingClientRect();
    magnify(Math.exp(-event.deltaY / 400), [event.clientX - box.left, event.clientY - box.top]);
  }, { passive: false });

  // Up to two pointers: one moves the line or the picture, two of them pinch.

  const held = new Map();
  let cutting = false;
  const place = (event) => {
    const box = stage.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top, box.width];
  };
  const apart = () => {
    const [[ax, ay], [bx, by]] = held.values();
    return Math.hypot(ax - bx, ay - by) || 1;
  };
  stage.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    event.preventDefault();
    stage.setPointerCapture(event.pointerId);
    const [px, py, width] = place(event);
    held.set(event.pointerId, [px, py]);
    cutting = held.size === 1 && !cut.disabled && (zoom === 1 || Math.abs(px - (width * cut.value) / 100) < 24);
    if (cutting) { cut.value = (100 * px) / width; draw(); }
    cut.focus({ preventScroll: true });
  });
  stage.addEventListener("pointermove", (event) => {
    if (!held.has(event.pointerId)) return;
    const [px, py, width] = place(event);
    const [fx, fy] = held.get(event.pointerId);
    const before = held.size === 2 ? apart() : 0;
    held.set(event.pointerId, [px, py]);
    if (held.size === 2) {
      const [[ax, ay], [bx, by]] = held.values();
      magnify(apart() / before, [(ax + bx) / 2, (ay + by) / 2]);
    } else if (cutting) {
      cut.value = (100 * px) / width;
      draw();
    } else {
      x += px - fx;
      y += py - fy;
      draw();
    }
  });
  for (const name of ["pointerup", "pointercancel"]) stage.addEventListener(name, (event) => held.delete(event.pointerId));
})();
