// The pictures of a decision page: production, candidate and their difference zoom and pan together.
"use strict";
(() => {
  const FIRST = 6, MOST = 32; // pictures shown at first; largest zoom: screen pixels to an image pixel
  const pictures = JSON.parse(document.getElementById("pictures").textContent);
  const { colors, changes } = JSON.parse(document.getElementById("colors").textContent);
  const shown = new Set(colors.map((_, index) => index)); // class indices
  const options = { fill: true, outlines: true };
  const views = [...document.querySelectorAll("figure.picture")].map((figure, index) => new View(figure, pictures[index]));
  const ratio = () => Math.min(2, window.devicePixelRatio || 1);

  function View(figure, picture) {
    const group = figure.querySelector(".panels"), text = figure.querySelector("output");
    const canvases = [...group.querySelectorAll("canvas")];
    const masks = {};
    let image = null, loading = null, x = picture.width / 2, y = picture.height / 2, zoom = 0; // CSS pixels to an image pixel
    const fit = () => Math.min(canvases[0].clientWidth / picture.width, canvases[0].clientHeight / picture.height);
    const scale = () => Math.max(zoom, fit());
    for (const canvas of canvases) canvas.style.aspectRatio = `1 / ${Math.min(1, Math.max(0.6, picture.height / picture.width))}`;

    this.load = () => loading ??= (async () => {
      for (const side of ["production", "candidate"]) if (picture[side]) masks[side] = indices(await decoded(picture[side]));
      image = await decoded(picture.image);
      this.draw();
      figure.dataset.ready = "yes";
    })();
    this.figure = figure;
    this.draw = () => {
      if (!image || figure.hidden) return;
      for (const canvas of canvases) paint(canvas);
      const percent = scale() < 0.1 ? Math.round(1000 * scale()) / 10 : Math.round(100 * scale());
      text.textContent = `${percent} %`;
      group.classList.toggle("zoomed", zoom > fit());
    };

    function paint(canvas) {
      const dpr = ratio(), width = Math.round(canvas.clientWidth * dpr), height = Math.round(canvas.clientHeight * dpr);
      if (!width || !height) return;
      if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
      const s = scale() * dpr, left = Math.round(width / 2 - x * s), top = Math.round(height / 2 - y * s);
      const pen = canvas.getContext("2d", { willReadFrequently: true });
      pen.fillStyle = "#e8eaee";
      pen.fillRect(0, 0, width, height);
      pen.imageSmoothingEnabled = s < 3;
      pen.imageSmoothingQuality = "high";
      pen.drawImage(image, left, top, picture.width * s, picture.height * s);
      const kind = canvas.dataset.kind, pixels = pen.getImageData(0, 0, width, height);
      if (kind !== "image" && options.outlines) {
        const at = (mask) => sampled(mask, picture, width, height, left, top, s);
        if (kind === "difference") difference(pixels.data, at(masks.production), at(masks.candidate));
        else outlines(pixels.data, at(masks[kind]), width, Math.max(1, Math.round(dpr)));
        pen.putImageData(pixels, 0, 0);
      }
      scaleBar(pen, width, height, s, dpr);
    }

    function scaleBar(pen, width, height, s, dpr) {
      const unit = picture.mpp || 1, length = scaleBarLength(width / 3 / s * unit); // in microns or pixels
      const bar = length / unit * s, label = `${Number(length.toPrecision(3))} ${picture.mpp ? "µm" : "pixels"}`;
      pen.font = `${Math.round(13 * dpr)}px system-ui, sans-serif`;
      const box = Math.max(bar, pen.measureText(label).width) + 14 * dpr;
      pen.fillStyle = "rgba(255, 255, 255, 0.85)";
      pen.fillRect(6 * dpr, height - 34 * dpr, box, 28 * dpr);
      pen.fillStyle = "#000";
      pen.fillRect(13 * dpr, height - 13 * dpr, bar, 3 * dpr);
      pen.fillText(label, 13 * dpr, height - 18 * dpr);
    }

    const keep = () => { // the picture inside its panel
      const w = canvases[0].clientWidth / 2 / scale(), h = canvases[0].clientHeight / 2 / scale();
      x = w * 2 >= picture.width ? picture.width / 2 : Math.min(picture.width - w, Math.max(w, x));
      y = h * 2 >= picture.height ? picture.height / 2 : Math.min(picture.height - h, Math.max(h, y));
    };
    const change = (factor, px = 0, py = 0) => { // zoom about a point, in CSS pixels from the middle of a panel
      const before = scale();
      zoom = Math.min(MOST, Math.max(fit(), before * factor));
      x += px / before - px / zoom; y += py / before - py / zoom;
      keep(); this.draw();
    };
    const move = (dx, dy) => { x -= dx / scale(); y -= dy / scale(); keep(); this.draw(); };
    const actions = {
      in: () => change(1.5), out: () => change(1 / 1.5), fit: () => { zoom = 0; keep(); this.draw(); }, own: () => change(1 / scale()),
      left: () => move(60, 0), right: () => move(-60, 0), up: () => move(0, 60), down: () => move(0, -60),
    };
    const keys = { "+": "in", "=": "in", "-": "out", 0: "fit", 1: "own", ArrowLeft: "left", ArrowRight: "right", ArrowUp: "up", ArrowDown: "down" };
    for (const button of figure.querySelectorAll("button[data-do]")) button.addEventListener("click", () => actions[button.dataset.do]());
    group.addEventListener("keydown", (event) => {
      const name = keys[event.key];
      if (!name || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault(); actions[name]();
    });
    const middle = (event) => {
      const box = event.target.getBoundingClientRect();
      return [event.clientX - box.left - box.width / 2, event.clientY - box.top - box.height / 2];
    };
    group.addEventListener("wheel", (event) => {
      if (event.target.tagName !== "CANVAS" || !(event.ctrlKey || event.metaKey || document.activeElement === group)) return;
      event.preventDefault();
      change(Math.exp(-Math.max(-100, Math.min(100, event.deltaY)) / 250), ...middle(event));
    }, { passive: false });
    group.addEventListener("dblclick", (event) => { if (event.target.tagName === "CANVAS") change(2, ...middle(event)); });
    const touches = new Map();
    group.addEventListener("pointerdown", (event) => {
      if (event.target.tagName !== "CANVAS") return;
      touches.set(event.pointerId, event);
      if (event.pointerType === "mouse") event.target.setPointerCapture(event.pointerId);
    });
    group.addEventListener("pointermove", (event) => {
      const last = touches.get(event.pointerId);
      if (!last) return;
      const other = [...touches.values()].find((it) => it.pointerId !== event.pointerId);
      touches.set(event.pointerId, event);
      if (other) {
        const apart = (one) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY);
        change(apart(event) / Math.max(1, apart(last)), ...middle(event));
      } else if (event.pointerType === "mouse" || zoom > fit()) move(event.clientX - last.clientX, event.clientY - last.clientY);
    });
    for (const end of ["pointerup", "pointercancel"]) group.addEventListener(end, (event) => touches.delete(event.pointerId));
  }

  async function decoded(address) {
    const image = new Image();
    image.src = address;
    await image.decode();
    return image;
  }

  function indices(image) { // the red channel of a gray picture
    const canvas = document.createElement("canvas");
    canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
    const pen = canvas.getContext("2d", { willReadFrequently: true });
    pen.drawImage(image, 0, 0);
    return pen.getImageData(0, 0, canvas.width, canvas.height).data.filter((_, index) => index % 4 === 0);
  }

  function sampled(mask, picture, width, height, left, top, s) { // class of each screen pixel; hidden classes count as background
    const labels = new Uint8Array(width * height), columns = new Int32Array(width);
    for (let u = 0; u < width; u++) { const column = Math.floor((u - left) / s); columns[u] = column < picture.width ? column : -1; }
    for (let v = 0; v < height; v++) {
      const row = Math.floor((v - top) / s);
      if (row < 0 || row >= picture.height) continue;
      for (let u = 0; u < width; u++) {
        if (columns[u] < 0) continue;
        const label = mask[row * picture.width + columns[u]];
        if (shown.has(label)) labels[v * width + u] = label;
      }
    }
    return labels;
  }

  function blend(data, pixel, color, share) {
    for (let c = 0; c < 3; c++) data[4 * pixel + c] += share * (color[c] - data[4 * pixel + c]);
  }

  function outlines(data, labels, width, reach) {
    const offsets = [1, -1, width, -width].map((it) => it * reach), end = labels.length;
    for (let pixel = 0; pixel < end; pixel++) {
      const label = labels[pixel];
      let highest = label, edge = false, rim = false;
      for (const offset of offsets) {
        const near = labels[pixel + offset] ?? label, far = labels[pixel + 2 * offset] ?? label;
        if (near !== label) { edge = true; if (near > highest) highest = near; }
        if (far !== label) rim = true;
      }
      if (edge) blend(data, pixel, colors[highest], 1);
      else if (rim) blend(data, pixel, [0, 0, 0], 0.45);
      else if (label && options.fill) blend(data, pixel, colors[label], 0.12);
    }
  }

  function difference(data, before, after) {
    for (let pixel = 0; pixel < before.length; pixel++) {
      const gray = 0.3 * data[4 * pixel] + 0.59 * data[4 * pixel + 1] + 0.11 * data[4 * pixel + 2];
      data[4 * pixel] = data[4 * pixel + 1] = data[4 * pixel + 2] = gray;
      if (before[pixel] === after[pixel]) { if (after[pixel] && options.fill) blend(data, pixel, [255, 255, 255], 0.35); continue; }
      blend(data, pixel, changes[before[pixel] === 0 ? 0 : after[pixel] === 0 ? 1 : 2], 0.7);
    }
  }

  let printing = false; // what is drawn while the browser lays out for paper stays blank there
  const drawAll = () => { if (!printing) views.forEach((view) => view.draw()); };
  for (const box of document.querySelectorAll("input[data-class]")) box.addEventListener("change", () => {
    box.checked ? shown.add(Number(box.dataset.class)) : shown.delete(Number(box.dataset.class));
    drawAll();
  });
  for (const box of document.querySelectorAll("input[data-option]")) box.addEventListener("change", () => { options[box.dataset.option] = box.checked; drawAll(); });

  // the first pictures; all of them when asked for
  const more = document.getElementById("more");
  const showAll = () => { views.forEach((view) => { view.figure.hidden = false; }); if (more) more.hidden = true; queue(); };
  if (more && views.length > FIRST) {
    more.hidden = false;
    views.slice(FIRST).forEach((view) => { view.figure.hidden = true; });
    more.querySelector("button").addEventListener("click", () => { showAll(); views[FIRST].figure.querySelector(".panels").focus(); });
  }
  const reveal = (hash) => {
    const target = hash.length > 1 && document.getElementById(hash.slice(1));
    if (!target) return;
    if (target.closest("figure[hidden]")) showAll();
    if (target.tagName === "DETAILS") target.open = true;
    target.tabIndex = -1;
    target.focus();
    target.scrollIntoView();
  };
  document.addEventListener("click", (event) => { // a frame in MLflow does not follow such links by itself
    const link = event.target.closest('a[href^="#"]');
    if (link) { event.preventDefault(); reveal(link.getAttribute("href")); }
  });
  reveal(location.hash);

  let running = false;
  async function queue() { // one after another, so that the page answers meanwhile
    if (running) return;
    running = true;
    for (const view of views) if (!view.figure.hidden) { await view.load(); await new Promise((done) => setTimeout(done)); }
    running = false;
  }
  queue();
  new ResizeObserver(drawAll).observe(document.querySelector("main"));
  const tools = document.getElementById("tools"); // it covers the top of the window: what is jumped to begins below it
  new ResizeObserver(() => document.documentElement.style.setProperty("--tools", `${tools.offsetHeight}px`)).observe(tools);
  window.addEventListener("beforeprint", () => { printing = true; });
  window.addEventListener("afterprint", () => { printing = false; drawAll(); });
})();
