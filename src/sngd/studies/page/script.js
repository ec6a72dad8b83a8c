// Draws the charts from the numbers that stand beside them in the page. No library, no request.
const NS = "http://www.w3.org/2000/svg";
const HEIGHT = 300, TOP = 10, RIGHT = 12, BOTTOM = 46, LETTER = 7.4;  // pixels; a digit of the axes is so wide
const hidden = new Set();  // arms
const charts = [...document.querySelectorAll(".chart")].map(figure => ({
  ...JSON.parse(figure.querySelector("script").textContent),
  svg: figure.querySelector("svg.plot"),
  tip: figure.querySelector(".tip"),
  zoom: null,
}));

function add(parent, tag, attributes, text) {
  const element = document.createElementNS(NS, tag);
  for (const [name, content] of Object.entries(attributes)) element.setAttribute(name, content);
  if (text !== undefined) element.textContent = text;
  return parent.appendChild(element);
}

// ---- axes

function label(number) {
  if (number !== 0 && (Math.abs(number) >= 1e5 || Math.abs(number) < 1e-3)) {
    return number.toExponential(2).replace(/\.?0+e/, "e").replace("+", "");
  }
  return String(Number(number.toPrecision(6)));
}

function evenTicks([low, high], most) {
  const rough = (high - low) / Math.max(1, most), power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find(factor => factor * power >= 0.999 * rough);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high * (1 + 1e-12) + 1e-9 * step; i++) ticks.push(i * step);
  return ticks;
}

function logTicks([low, high], most) {
  const decades = Math.log10(high / low);
  if (decades < 1) return evenTicks([low, high], most).filter(tick => tick > 0);
  const factors = 3 * decades <= most ? [1, 2, 5] : 2 * decades <= most ? [1, 3] : [1], every = Math.ceil(decades / Math.max(1, most));
  const ticks = [];
  for (let power = Math.ceil(Math.log10(low) - 1); power <= Math.log10(high); power++) {
    if (power % every === 0) ticks.push(...factors.map(factor => factor * 10 ** power));
  }
  return ticks.filter(tick => tick >= low * 0.999 && tick <= high * 1.001);
}

function yRange(chart, lines) {
  if (!chart.log && chart.view) return chart.view;
  const numbers = lines.flatMap(line => [line.y, line.low ?? [], line.high ?? []].flat());
  numbers.push(...chart.references.map(reference => reference.y));
  const shown = numbers.filter(number => number !== null && (!chart.log || number > 0));
  if (!shown.length) return chart.log ? [0.1, 1] : [0, 1];
  let low = shown.reduce((a, b) => Math.min(a, b)), high = shown.reduce((a, b) => Math.max(a, b));
  if (chart.log) {
    const factor = Math.max(1.1, (high / low) ** 0.05);
    return [low / factor, high * factor];
  }
  const margin = 0.05 * (high - low) || 0.5 * Math.abs(high) || 0.5;
  return [low - margin, high + margin];
}

// ---- a chart

function draw(chart) {
  const { svg } = chart, width = svg.clientWidth;
  if (!width) return;
  svg.replaceChildren();
  svg.dataset.axis = chart.log ? "log" : "linear";
  const lines = chart.lines.filter(line => !hidden.has(line.arm));
  const xs = chart.lines.flatMap(line => line.x);
  const xRange = chart.zoom?.x ?? [0, xs.reduce((a, b) => Math.max(a, b), 0) || 1];
  const range = chart.zoom?.y ?? yRange(chart, lines);
  const height = HEIGHT - TOP - BOTTOM;
  const yTicks = (chart.log ? logTicks : evenTicks)(range, Math.floor(height / 35));
  const left = 14 + LETTER * Math.max(3, ...yTicks.map(tick => label(tick).length));
  const inner = width - left - RIGHT;
  const xTicks = evenTicks(xRange, Math.max(1, Math.floor(inner / 75)));
  const scale = chart.log ? Math.log10 : number => number;
  const x = number => left + (number - xRange[0]) / (xRange[1] - xRange[0]) * inner;
  const y = number => TOP + (1 - (scale(number) - scale(range[0])) / (scale(range[1]) - scale(range[0]))) * height;
  const inverse = chart.log
    ? place => range[0] * (range[1] / range[0]) ** (1 - (place - TOP) / height)
    : place => range[0] + (1 - (place - TOP) / height) * (range[1] - range[0]);
  Object.assign(chart, {
    left, right: width - RIGHT, x, fromX: place => xRange[0] + (place - left) / inner * (xRange[1] - xRange[0]), fromY: inverse,
  });

  for (const tick of yTicks) {
    add(svg, "line", { class: "grid", x1: left, x2: width - RIGHT, y1: y(tick), y2: y(tick) });
    add(svg, "text", { class: "tick y", x: left - 8, y: y(tick) + 4.5, "text-anchor": "end" }, label(tick));
  }
  for (const tick of xTicks) {
    add(svg, "line", { class: "axis", x1: x(tick), x2: x(tick), y1: TOP + height, y2: TOP + height + 5 });
    const text = label(tick), half = LETTER * text.length / 2;
    const place = Math.min(x(tick), width - half);  // the last one stays inside
    add(svg, "text", { class: "tick x", x: place, y: TOP + height + 19, "text-anchor": "middle" }, text);
  }
  add(svg, "path", { class: "axis", d: `M${left},${TOP}V${TOP + height}H${width - RIGHT}` });
  add(svg, "text", { class: "title", x: left + inner / 2, y: HEIGHT - 6, "text-anchor": "middle" }, "#grad/n");

  const clip = add(add(svg, "clipPath", { id: `clip-${svg.id}` }), "rect", { x: left, y: TOP - 2, width: inner + 2 });
  clip.setAttribute("height", height + 4);
  const inside = add(svg, "g", { "clip-path": `url(#clip-${svg.id})` });
  const drawable = number => number !== null && (!chart.log || number > 0);
  const path = (line, numbers) => {
    let pen = "M", d = "";
    numbers.forEach((number, i) => {
      if (!drawable(number)) { pen = "M"; return; }
      d += `${pen}${x(line.x[i]).toFixed(1)},${y(number).toFixed(1)}`;
      pen = "L";
    });
    return d;
  };
  for (const line of lines.filter(line => line.low)) {
    const known = line.x.map((_, i) => i).filter(i => drawable(line.low[i]) && drawable(line.high[i]));
    const edge = (numbers, order) => order.map(i => `${x(line.x[i]).toFixed(1)},${y(numbers[i]).toFixed(1)}`).join("L");
    if (!known.length) continue;
    const d = `M${edge(line.high, known)}L${edge(line.low, [...known].reverse())}Z`;
    add(inside, "path", { class: "band", "data-arm": line.arm, fill: line.color, d });
  }
  for (const line of lines) {
    add(inside, "path", {
      class: "mean", "data-arm": line.arm, stroke: line.color, "stroke-width": line.width,
      "stroke-dasharray": line.dash, d: path(line, line.y),
    });
  }
  for (const reference of chart.references) {
    add(inside, "line", { class: "reference", x1: left, x2: width - RIGHT, y1: y(reference.y), y2: y(reference.y) });
    const place = { class: "tick", x: width - RIGHT - 4, y: y(reference.y) - 5, "text-anchor": "end" };
    add(inside, "text", place, reference.text);
  }
  chart.rule = add(svg, "line", { class: "rule", y1: TOP, y2: TOP + height, visibility: "hidden" });
  chart.box = add(svg, "rect", { class: "box", visibility: "hidden" });
}

// ---- reading values

function nearest(numbers, number) {
  let best = 0;
  numbers.forEach((one, i) => { if (Math.abs(one - number) < Math.abs(numbers[best] - number)) best = i; });
  return best;
}

function showValues(chart, place) {
  const lines = chart.lines.filter(line => !hidden.has(line.arm) && line.x.length);
  if (!lines.length || place < chart.left || place > chart.right) return hideValues(chart);
  const wanted = chart.fromX(place), all = lines.flatMap(line => line.x), at = all[nearest(all, wanted)];
  chart.rule.setAttribute("x1", chart.x(at));
  chart.rule.setAttribute("x2", chart.x(at));
  chart.rule.setAttribute("visibility", "visible");
  chart.tip.replaceChildren();
  const head = document.createElement("b");
  head.textContent = `#grad/n ${label(at)}`;
  chart.tip.append(head);
  for (const line of lines) {
    const i = nearest(line.x, at), row = document.createElement("span");
    if (line.y[i] === null) continue;
    const ends = line.low ? ` [${value(line.low[i])}, ${value(line.high[i])}]` : "";
    row.style.setProperty("--own", line.color);
    row.textContent = `${line.name}: ${value(line.y[i])}${ends}`;
    chart.tip.append(row);
  }
  chart.tip.hidden = false;
  const onLeft = place > (chart.left + chart.right) / 2;
  chart.tip.style.left = onLeft ? "auto" : `${place + 14}px`;
  chart.tip.style.right = onLeft ? `${chart.svg.clientWidth - place + 14}px` : "auto";
}

function value(number) { return number === null ? "–" : label(Number(number.toPrecision(4))); }

function hideValues(chart) {
  chart.rule?.setAttribute("visibility", "hidden");
  chart.tip.hidden = true;
}

// ---- zooming with the mouse

function placeIn(svg, event) {
  const frame = svg.getBoundingClientRect();
  return [event.clientX - frame.left, event.clientY - frame.top];
}

function zoomable(chart) {
  let start = null;
  chart.svg.addEventListener("pointerdown", event => {
    const place = placeIn(chart.svg, event);
    if (event.pointerType !== "mouse" || place[0] < chart.left) return;
    start = place;
    chart.svg.setPointerCapture(event.pointerId);  // a drag may leave the chart
  });
  chart.svg.addEventListener("pointermove", event => {
    const place = placeIn(chart.svg, event);
    showValues(chart, place[0]);
    if (!start) return;
    const corner = [0, 1].map(i => Math.min(start[i], place[i]));
    const size = [0, 1].map(i => Math.abs(start[i] - place[i]));
    const box = { x: corner[0], y: corner[1], width: size[0], height: size[1], visibility: "visible" };
    for (const [name, number] of Object.entries(box)) chart.box.setAttribute(name, number);
  });
  chart.svg.addEventListener("pointerup", event => {
    const end = placeIn(chart.svg, event), from = start;
    start = null;
    if (!from) return;
    if (Math.abs(end[0] - from[0]) > 8 && Math.abs(end[1] - from[1]) > 8) {
      const x = [from[0], end[0]].map(chart.fromX).sort((a, b) => a - b);
      const y = [from[1], end[1]].map(chart.fromY).sort((a, b) => a - b);
      chart.zoom = { x: [Math.max(0, x[0]), x[1]], y };
    }
    draw(chart);
  });
  chart.svg.addEventListener("pointerleave", () => { start = null; hideValues(chart); draw(chart); });
  chart.svg.addEventListener("dblclick", () => { chart.zoom = null; draw(chart); });
}

// ---- the buttons

function save(chart) {
  const copy = chart.svg.cloneNode(true), originals = chart.svg.querySelectorAll("*");
  copy.querySelectorAll("*").forEach((element, i) => {  // the file has no style sheet
    const style = getComputedStyle(originals[i]);
    for (const name of ["fill", "fill-opacity", "stroke", "stroke-width", "font-size", "font-family", "visibility"]) {
      element.setAttribute(name, style.getPropertyValue(name));
    }
  });
  const size = { xmlns: NS, width: chart.svg.clientWidth, height: HEIGHT };
  for (const [name, content] of Object.entries(size)) copy.setAttribute(name, content);
  copy.setAttribute("style", `background: ${getComputedStyle(document.body).backgroundColor}`);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([new XMLSerializer().serializeToString(copy)], { type: "image/svg+xml" }));
  link.download = `${chart.svg.id}.svg`;
  link.click();
  URL.revokeObjectURL(link.href);
}

const chartOf = button => charts.find(chart => chart.svg === button.closest(".chart").querySelector("svg.plot"));
for (const button of document.querySelectorAll("[data-toggle]")) {
  button.addEventListener("click", () => {
    const shown = button.getAttribute("aria-pressed") === "false";
    button.setAttribute("aria-pressed", shown);
    hidden[shown ? "delete" : "add"](button.dataset.toggle);
    charts.forEach(draw);
  });
}
for (const button of document.querySelectorAll("[data-axis]:not(svg)")) {
  button.addEventListener("click", () => {
    for (const other of button.parentElement.children) other.setAttribute("aria-pressed", other === button);
    const chart = chartOf(button);
    chart.log = button.dataset.axis === "log";
    chart.zoom = null;
    draw(chart);
  });
}
for (const button of document.querySelectorAll("[data-save]")) {
  button.addEventListener("click", () => save(chartOf(button)));
}
const legend = document.querySelector(".legend");
if (legend && matchMedia("(max-width: 40rem)").matches) legend.open = false;
for (const chart of charts) {
  zoomable(chart);
  new ResizeObserver(() => draw(chart)).observe(chart.svg);
}
