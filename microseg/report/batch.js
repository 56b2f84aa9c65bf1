// The images of a batch: searched, sorted, a page at a time.
"use strict";
const microseg = { rows: [] };
function microsegRows(rows) {
  for (const [name, title, width, height, mpp, model, unsized, image, outlines, values, outputs] of rows)
    microseg.rows.push({ name, title, width, height, mpp, model, unsized, image, outlines, values, outputs, order: microseg.rows.length });
}
function microsegShow() {
  const PER_PAGE = 24, BINS = 24; // images of a page, bars of a histogram
  const { columns, labels, models, classes, folder } = JSON.parse(document.getElementById("data").textContent);
  const rows = microseg.rows, get = (id) => document.getElementById(id);
  const search = get("search"), sort = get("sort"), reverse = get("reverse"), only = get("only");
  let chosen = rows, page = 0;

  const number = (value) => value === null || value === undefined ? "–" : Number.isInteger(value) ? value.toLocaleString("en") : String(Number(value.toPrecision(3)));
  const address = (...parts) => parts.map(encodeURIComponent).join("/");
  const ood = columns.indexOf("ood_score");
  const known = columns.map((_, column) => rows.some((row) => row.values[column] !== null));

  function element(tag, attributes = {}, ...children) { // text is never read as HTML
    const found = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) found.setAttribute(name, value);
    found.append(...children.filter((it) => it !== null));
    return found;
  }
  const option = (select, value, text) => select.append(element("option", { value }, text));
  const filters = new Map([["", () => true]]);
  function filter(value, text, test) {
    const count = rows.filter(test).length;
    if (count && count < rows.length) { filters.set(value, test); option(only, value, `${text} (${count.toLocaleString("en")})`); }
  }
  columns.forEach((_, column) => { if (known[column]) option(sort, String(column), labels[column]); });
  if (ood >= 0) filter("unlike", "out of distribution", (row) => row.values[ood] > 1);
  filter("unsized", "unknown pixel size", (row) => row.unsized);
  if (models.length > 1) models.forEach((model, index) => filter(`model ${index}`, model, (row) => row.model === index));

  function choose() {
    const wanted = search.value.toLocaleLowerCase(), test = filters.get(only.value) ?? filters.get("");
    chosen = rows.filter((row) => test(row) && row.title.toLocaleLowerCase().includes(wanted));
    const sign = reverse.checked ? -1 : 1, column = Number(sort.value);
    if (sort.value === "name") chosen.sort((a, b) => sign * a.title.localeCompare(b.title, "en", { numeric: true }));
    else if (sort.value !== "") chosen.sort((a, b) => { // unknown values last
      const [x, y] = [a.values[column], b.values[column]];
      return x === null ? (y === null ? 0 : 1) : y === null ? -1 : sign * (x - y) || a.order - b.order;
    });
    else if (reverse.checked) chosen.reverse();
    page = 0;
    show();
  }

  function scaleBar(row) {
    const unit = row.mpp ?? 1, length = scaleBarLength(row.width * unit * 0.5);
    const micron = length >= 1000 && row.mpp ? `${length / 1000} mm` : `${Number(length.toPrecision(3))} ${row.mpp ? "µm" : "px"}`;
    const bar = element("i"), title = row.mpp ? `${row.mpp} microns per pixel` : "The pixel size is unknown";
    bar.style.width = `${100 * length / (row.width * unit)}%`; // of the picture
    const box = element("span", { class: "scalebar", title }, element("b", {}, micron), bar);
    return box;
  }

  function picture(row, file, title, link) {
    const image = file ? element("img", { src: address(folder, "thumbnails", file), alt: `${row.title}, ${title}` }) : null;
    if (image) image.style.aspectRatio = `${row.width} / ${row.height}`; // its place is kept before it is loaded
    else return element("span", { class: "none" }, title === "image" ? "The image cannot be shown." : "No overlay was written.");
    const parts = [image, element("small", {}, title), scaleBar(row)];
    return link ? element("a", { href: address(link), "aria-label": `${row.title}: overlay in full size` }, ...parts) : element("span", {}, ...parts);
  }

  function card(row) {
    const files = Object.fromEntries(row.outputs), list = element("dl");
    const line = (title, value, sorted) => list.append(element("dt", sorted ? { class: "sorted" } : {}, title), element("dd", sorted ? { class: "sorted" } : {}, value));
    columns.forEach((_, column) => { if (known[column]) line(labels[column], number(row.values[column]), sort.value === String(column)); });
    const links = [...row.outputs, ["record", `${row.name}.json`]].flatMap(([kind, file]) => [element("a", { href: address(file) }, kind), " "]);
    const unlike = ood >= 0 && row.values[ood] > 1;
    const size = `${row.width} × ${row.height} pixels${row.mpp === null ? "" : ` of ${number(row.mpp)} µm`}`;
    const notes = [unlike && "out of distribution", row.unsized && "unknown pixel size"].filter(Boolean).join(", ");
    return element("li", unlike ? { class: "unlike" } : {},
      element("strong", {}, row.title), element("div", { class: "soft" }, size), notes ? element("div", { class: "open" }, notes) : null,
      element("div", { class: "pair" }, picture(row, row.image, "image"), picture(row, row.outlines, "outlines", files.overlay)),
      list, models.length > 1 ? element("div", { class: "soft" }, models[row.model]) : null, element("div", {}, ...links));
  }

  function show() {
    const pages = Math.max(1, Math.ceil(chosen.length / PER_PAGE)), first = page * PER_PAGE;
    get("images").replaceChildren(...chosen.slice(first, first + PER_PAGE).map(card));
    get("nothing").hidden = chosen.length > 0;
    get("where").textContent = `${chosen.length ? first + 1 : 0} to ${Math.min(chosen.length, first + PER_PAGE)} of ${chosen.length.toLocaleString("en")}`;
    get("before").disabled = page === 0;
    get("after").disabled = page >= pages - 1;
  }
  const turn = (step) => { page += step; show(); get("look").scrollIntoView(); };
  get("before").addEventListener("click", () => turn(-1));
  get("after").addEventListener("click", () => turn(1));
  search.addEventListener("input", choose);
  for (const it of [sort, reverse, only]) it.addEventListener("change", choose);

  function histogram(title, column) {
    const values = rows.map((row) => row.values[column]).filter((it) => it !== null).sort((a, b) => a - b);
    if (!values.length) return;
    const low = values[0], high = values[values.length - 1], counts = new Array(BINS).fill(0);
    for (const value of values) counts[high > low ? Math.min(BINS - 1, Math.floor((value - low) / (high - low) * BINS)) : 0]++;
    const most = Math.max(...counts), median = (values[(values.length - 1) >> 1] + values[values.length >> 1]) / 2;
    const text = `${values.length.toLocaleString("en")} images, from ${number(low)} to ${number(high)}, median ${number(median)}`;
    const space = "http://www.w3.org/2000/svg", svg = document.createElementNS(space, "svg");
    const draw = (tag, attributes, content = "") => {
      const part = document.createElementNS(space, tag);
      for (const [name, value] of Object.entries(attributes)) part.setAttribute(name, value);
      part.textContent = content;
      svg.append(part);
    };
    for (const [name, value] of Object.entries({ viewBox: "0 0 300 120", role: "img", "aria-label": `${title}: ${text}`, "font-size": "12", fill: "#1d2433" })) svg.setAttribute(name, value);
    counts.forEach((count, bin) => { if (count) draw("rect", { x: 300 / BINS * bin, y: 95 - 85 * count / most, width: 300 / BINS - 1, height: Math.max(1, 85 * count / most), fill: "#2f6fb3" }); });
    draw("path", { d: "M0 95.5h300", stroke: "#667" });
    draw("text", { x: 0, y: 112 }, number(low));
    draw("text", { x: 300, y: 112, "text-anchor": "end" }, number(high));
    draw("text", { x: 150, y: 112, "text-anchor": "middle", fill: "#556" }, `up to ${most.toLocaleString("en")} images in a bar`);
    get("histograms").append(element("div", {}, element("h3", {}, title), svg, element("p", { class: "small soft" }, text)));
  }
  const wanted = [...classes.flatMap((name) => [`objects_${name}`, `area_fraction_${name}`]), "mean_confidence", "ood_score"];
  for (const name of wanted) if (columns.includes(name)) histogram(labels[columns.indexOf(name)], columns.indexOf(name));
  choose();
}
