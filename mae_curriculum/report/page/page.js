"use strict";
// Switches the axes of the charts, reads values at a position, and applies the page's colors. Bokeh draws the charts.

const root = document.documentElement;
const form = document.querySelector(".controls");
const slider = document.getElementById("slider");
const theme = document.getElementById("theme");
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 2 });
const plain = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });
const charts = [];

/** Format a number with at most four digits. */
function format(value) {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1e12 || (size > 0 && size < 1e-3)) {
    return Number(value.toPrecision(3)).toExponential().replace("e+", "e");
  }
  return size >= 1e5 ? compact.format(value) : plain.format(value);
}

/** Return the index of the point nearest to a position on the x axis. */
function nearest(positions, position) {
  let [low, high] = [0, positions.length - 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (positions[middle] < position) low = middle + 1;
    else high = middle;
  }
  return low > 0 && position - positions[low - 1] < positions[low] - position ? low - 1 : low;
}

/** Format a point of a curve; for a thinned curve, its mean and range. */
function formatPoint(source, index) {
  const values = source.get_array("value");
  if (!source.columns().includes("mean")) return format(values[index]);
  const near = values.slice(Math.max(0, index - 1), index + 2);
  const [mean, low, high] = [source.get_array("mean")[index], Math.min(...near), Math.max(...near)].map(format);
  return low === high ? mean : `${mean} (${low} to ${high})`;
}

const axis = () => form.elements.axis.value;
const axisInput = () => form.querySelector("[name=axis]:checked");
const end = () => Number(axisInput().dataset.end);
const curves = plot => plot.renderers.filter(each => each.name.startsWith("run-"));

/** Draw a chart against the chosen x axis, from 0 to the end of the longest run. */
function setAxis({ plot }) {
  for (const each of plot.renderers) each.glyph.x = { field: axis() };
  plot.x_range.setv({ start: 0, end: end() * 1.01 });
}

/** Set the chosen scale of the y axis, and its range to that of the curves. */
function setScale({ plot }) {
  const log = form.elements.scale.value === "log";
  const [kind, ticker] = log ? ["LogScale", "LogTicker"] : ["LinearScale", "BasicTicker"];
  const values = curves(plot).flatMap(curve => [...curve.data_source.get_array("value")]);
  const shown = values.filter(value => Number.isFinite(value) && !(log && value <= 0));
  if (!shown.length) shown.push(0.1, 1); // a logarithmic axis needs some range
  const [low, high] = [Math.min(...shown), Math.max(...shown)];
  const [to, from] = log ? [Math.log, Math.exp] : [Number, Number];
  const margin = 0.06 * (to(high) - to(low)) || 0.1 * Math.abs(to(high)) || 0.1;
  plot.y_scale = new (Bokeh.Models.get(kind))();
  plot.y_range.setv({ start: from(to(low) - margin), end: from(to(high) + margin) });
  plot.left[0].ticker = new (Bokeh.Models.get(ticker))({ desired_num_ticks: 5 });
  plot.center.find(each => each.dimension === 1).ticker = plot.left[0].ticker;
}

/** Show the value of each curve at the slider's position; at the end, its last value. */
function showValues() {
  const exact = end() * slider.value / slider.max;
  const position = ["steps_done", "images"].includes(axis()) ? Math.round(exact) : exact;
  const atEnd = slider.value === slider.max;
  document.getElementById("position").textContent = format(position);
  for (const { plot, values } of charts) {
    curves(plot).forEach((curve, index) => {
      const positions = curve.data_source.get_array(axis());
      const ended = !atEnd && position > positions[positions.length - 1] + end() / slider.max;
      const point = atEnd ? positions.length - 1 : nearest(positions, position);
      const known = atEnd || Number.isFinite(positions[point]);
      values[index].textContent = ended ? "ended" : known ? formatPoint(curve.data_source, point) : "–";
    });
    plot.center.find(each => each.name === "cursor").setv({ location: position, visible: !atEnd });
  }
  const title = axisInput().parentElement.textContent.trim();
  const first = document.querySelector("figcaption").innerText;
  slider.setAttribute("aria-valuetext", `${title}: ${format(position)}. ${first}`);
}

/** Apply the page's colors to a chart. */
function setColors({ plot }) {
  for (const each of plot.renderers) {
    const own = color(`.key .run-${each.name.split("-")[1] % 6}`);
    each.glyph.setv({ line_color: own, ...(each.name.startsWith("points") && { fill_color: own }) });
  }
  for (const each of [...plot.below, ...plot.left]) each.major_label_text_color = color(".name");
  for (const each of plot.center) {
    if (each.name === "cursor") each.line_color = color("body");
    else each.grid_line_color = getComputedStyle(document.querySelector("section")).borderTopColor;
  }
}

const color = selector => getComputedStyle(document.querySelector(selector)).color;
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : prefersDark.matches);

/** Draw the charts one after the other, so that the first appears at once. */
async function start() {
  Bokeh.set_log_level("warn");
  const items = JSON.parse(document.getElementById("charts").textContent);
  const elements = document.querySelectorAll(".plot");
  for (const [index, item] of items.entries()) {
    const [view] = [...(await Bokeh.embed.embed_item(item, elements[index].id))];
    const chart = { plot: view.model, values: elements[index].closest("figure").querySelectorAll(".value") };
    chart.plot.on_event("mousemove", event => {
      slider.value = Math.round(slider.max * Math.min(1, Math.max(0, event.x / end())));
      showValues();
    });
    for (const prepare of [setAxis, setScale, setColors]) prepare(chart);
    charts.push(chart);
    showValues();
    await new Promise(requestAnimationFrame);
  }
  root.dataset.drawn = charts.length;
}

/** Apply a change of the theme. */
function applyTheme() {
  theme.textContent = isDark() ? "Light theme" : "Dark theme";
  charts.forEach(setColors);
}

form?.addEventListener("change", event => {
  const change = { axis: setAxis, scale: setScale }[event.target.name];
  if (change) charts.forEach(change);
  showValues();
});
slider?.addEventListener("input", showValues);
theme.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  applyTheme();
});
prefersDark.addEventListener("change", applyTheme);
applyTheme();
for (const each of document.querySelectorAll(".scroll, pre")) {
  if (each.scrollWidth > each.clientWidth) each.tabIndex = 0; // so that the keyboard can scroll it
}
if (form) start();
