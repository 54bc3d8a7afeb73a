"use strict";
// Switches the charts' axes, reads them off at a place, and paints them in the page's colours. Bokeh draws them.

const root = document.documentElement;
const form = document.querySelector(".controls");
const place = document.getElementById("place");
const theme = document.getElementById("theme");
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 2 });
const plain = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });
const charts = [];

/** Spell a number in at most four digits. */
function spell(value) {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1e12 || (size > 0 && size < 1e-3)) {
    return Number(value.toPrecision(3)).toExponential().replace("e+", "e");
  }
  return size >= 1e5 ? compact.format(value) : plain.format(value);
}

/** Find the point of a curve that is nearest to a place on the axis. */
function nearest(positions, where) {
  let [low, high] = [0, positions.length - 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (positions[middle] < where) low = middle + 1;
    else high = middle;
  }
  if (low > 0 && where - positions[low - 1] < positions[low] - where) low -= 1;
  return low;
}

/** Spell a point of a curve; where points were left out, the mean and how far they reach. */
function tell(source, index) {
  const values = source.get_array("value");
  if (!source.columns().includes("mean")) return spell(values[index]);
  const near = values.slice(Math.max(0, index - 1), index + 2);
  const [mean, low, high] = [source.get_array("mean")[index], Math.min(...near), Math.max(...near)].map(spell);
  return low === high ? mean : `${mean} (${low} to ${high})`;
}

const axis = () => form.elements.axis.value;
const end = () => Number(form.querySelector("[name=axis]:checked").dataset.end);
const curves = plot => plot.renderers.filter(each => each.name.startsWith("run-"));

/** Draw a chart against the chosen axis, from 0 to where the last run ended. */
function turn({ plot }) {
  for (const each of plot.renderers) each.glyph.x = { field: axis() };
  plot.x_range.setv({ start: 0, end: end() * 1.01 });
}

/** Give a chart the chosen scale, as high as its curves are. */
function scale({ plot }) {
  const log = form.elements.scale.value === "log";
  const [kind, ticker] = log ? ["LogScale", "LogTicker"] : ["LinearScale", "BasicTicker"];
  let [low, high] = [Infinity, -Infinity];
  for (const curve of curves(plot)) {
    for (const value of curve.data_source.get_array("value")) {
      if (value < low && !(log && value <= 0)) low = value;
      if (value > high) high = value;
    }
  }
  if (low === Infinity) [low, high] = [0.1, 1]; // nothing that a logarithm could show
  const [to, from] = log ? [Math.log, Math.exp] : [Number, Number];
  const room = 0.06 * (to(high) - to(low)) || 0.1 * Math.abs(to(high)) || 0.1;
  plot.y_scale = new (Bokeh.Models.get(kind))();
  plot.y_range.setv({ start: from(to(low) - room), end: from(to(high) + room) });
  plot.left[0].ticker = new (Bokeh.Models.get(ticker))({ desired_num_ticks: 5 });
  plot.center.find(each => each.dimension === 1).ticker = plot.left[0].ticker;
}

/** Show what every curve is at the chosen place; at the end, its last. */
function read() {
  const exact = end() * place.value / place.max;
  const where = ["steps_done", "images"].includes(axis()) ? Math.round(exact) : exact;
  const atEnd = place.value === place.max;
  document.getElementById("where").textContent = spell(where);
  for (const { plot, readings } of charts) {
    curves(plot).forEach((curve, index) => {
      const positions = curve.data_source.get_array(axis());
      const over = !atEnd && where > positions[positions.length - 1] + end() / place.max;
      const found = atEnd ? positions.length - 1 : nearest(positions, where);
      const known = atEnd || Number.isFinite(positions[found]);
      readings[index].textContent = over ? "ended" : known ? tell(curve.data_source, found) : "–";
    });
    const cursor = plot.center.find(each => each.name === "cursor");
    cursor.setv({ location: where, visible: !atEnd });
  }
  const title = document.querySelector("[name=axis]:checked").parentElement.textContent.trim();
  place.setAttribute("aria-valuetext", `${title}: ${spell(where)}. ${document.querySelector("figcaption").innerText}`);
}

/** Give a chart the page's colours. */
function paint({ plot }) {
  for (const each of plot.renderers) {
    const own = colour(`.key .run-${each.name.split("-")[1] % 6}`);
    each.glyph.setv({ line_color: own, ...(each.name.startsWith("points") && { fill_color: own }) });
  }
  for (const each of [...plot.below, ...plot.left]) each.major_label_text_color = colour(".name");
  for (const each of plot.center) {
    if (each.name === "cursor") each.line_color = colour("body");
    else each.grid_line_color = getComputedStyle(document.querySelector("section")).borderTopColor;
  }
}

const colour = selector => getComputedStyle(document.querySelector(selector)).color;
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : prefersDark.matches);

/** Draw the charts, one after the other, so that the first is there at once. */
async function start() {
  Bokeh.set_log_level("warn");
  const items = JSON.parse(document.getElementById("charts").textContent);
  const places = document.querySelectorAll(".plot");
  for (const [index, item] of items.entries()) {
    const [view] = [...(await Bokeh.embed.embed_item(item, places[index].id))];
    const chart = { plot: view.model, readings: places[index].closest("figure").querySelectorAll(".value") };
    chart.plot.on_event("mousemove", event => {
      place.value = Math.round(place.max * Math.min(1, Math.max(0, event.x / end())));
      read();
    });
    for (const prepare of [turn, scale, paint]) prepare(chart);
    charts.push(chart);
    read();
    await new Promise(requestAnimationFrame);
  }
  root.dataset.drawn = charts.length;
}

/** Show that the theme has changed. */
function repaint() {
  theme.textContent = isDark() ? "Light theme" : "Dark theme";
  charts.forEach(paint);
}

form?.addEventListener("change", event => {
  charts.forEach({ axis: turn, scale }[event.target.name] ?? (() => {}));
  read();
});
place?.addEventListener("input", read);
theme.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  repaint();
});
prefersDark.addEventListener("change", repaint);
repaint();
for (const each of document.querySelectorAll(".scroll, pre")) {
  if (each.scrollWidth > each.clientWidth) each.tabIndex = 0; // so that the keyboard can scroll it
}
if (form) start();
