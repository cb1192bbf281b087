"use strict";
const { pictures, colours, strength } = JSON.parse(document.getElementById("data").textContent);
const sections = [...document.querySelectorAll("section")];
const still = matchMedia("(prefers-reduced-motion: reduce)");
const GLIDE = 160;  // milliseconds from one word's map to the next
const SIDE = 480;  // pixels of the map's longer side; the browser scales it to the picture
let shown = 0;  // the picture that is seen

// ---- the heat map: the same as attention_overlay in eecs598/vis ----

const cubic = x => (x = Math.abs(x)) < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? ((2.5 - 0.5 * x) * x - 4) * x + 2 : 0;

// Along one axis: of which cells a pixel is the mean, and with which shares. Cell centres stay where they are; beyond
// the edge there are no cells, so the others share the whole.
function mixtures(cells, pixels) {
  return Array.from({ length: pixels }, (_, pixel) => {
    const at = (pixel + 0.5) * cells / pixels, mixture = [];
    for (let cell = Math.max(0, Math.floor(at - 2)); cell < Math.min(cells, at + 2); cell++)
      mixture.push({ cell, share: cubic(cell + 0.5 - at) });
    const total = mixture.reduce((sum, { share }) => sum + share, 0);
    mixture.forEach(part => part.share /= total);
    return mixture;
  });
}

// A grid of weights, row after row, 0 to 1, enlarged to the canvas: first along the rows, then along the columns.
function enlarge(grid, picture, width, height) {
  picture.across ??= mixtures(picture.grid[1], width);
  picture.down ??= mixtures(picture.grid[0], height);
  const rows = new Float32Array(picture.grid[0] * width), heat = new Float32Array(height * width);
  for (let i = 0; i < picture.grid[0]; i++)
    picture.across.forEach((mixture, x) => {
      for (const { cell, share } of mixture) rows[i * width + x] += share * grid[i * picture.grid[1] + cell];
    });
  picture.down.forEach((mixture, y) => {
    for (const { cell, share } of mixture)
      for (let x = 0; x < width; x++) heat[y * width + x] += share * rows[cell * width + x];
  });
  return heat.map(value => Math.min(1, Math.max(0, value)));  // bicubic overshoots a little
}

// Tinted more, and lighter, the higher the weight; a white line where it has fallen to half of the map's largest.
function draw(canvas, grid, picture) {
  const { width, height } = canvas, heat = enlarge(grid, picture, width, height);
  const image = new ImageData(width, height);
  for (let p = 0; p < heat.length; p++) {
    const level = heat[p] * (colours.length - 1), k = Math.min(colours.length - 2, Math.floor(level));
    for (let c = 0; c < 3; c++)
      image.data[4 * p + c] = colours[k][c] + (level - k) * (colours[k + 1][c] - colours[k][c]);
    image.data[4 * p + 3] = 255 * strength * heat[p];
    const left = p % width ? p - 1 : p, above = p < width ? p : p - width;
    if ((heat[p] > 0.5) !== (heat[left] > 0.5) || (heat[p] > 0.5) !== (heat[above] > 0.5))
      for (const q of [p, left, above]) image.data.fill(255, 4 * q, 4 * q + 4);
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

// The map glides from where it is to the word's, unless the reader wants no motion.
function glide(section, picture, grid) {
  const canvas = section.querySelector("canvas"), from = section.grid ?? grid, start = performance.now();
  const turn = section.turn = {};  // a later word's glide takes over
  const step = now => {
    if (section.turn !== turn) return;
    const part = still.matches || from === grid ? 1 : Math.min(1, Math.max(0, now - start) / GLIDE);
    section.grid = grid.map((value, cell) => from[cell] + part * (value - from[cell]));
    draw(canvas, section.grid, picture);
    if (part < 1) requestAnimationFrame(step);
  };
  step(start);
}

// ---- the words ----

const number = value => value.toFixed(2);

// An element with text and children: text is never read as HTML.
function make(tag, className, ...inside) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...inside);
  return element;
}

function row(name, probability, className) {
  const bar = make("i");
  bar.style.width = `${100 * probability}%`;
  const cells = [make("td", "number", number(probability)), make("td", "", bar)];
  const head = make("th", "", name);
  head.scope = "row";
  return make("tr", className, head, ...cells);
}

function describe({ word, probability, others, rest }) {
  if (probability === null && !others.length) return [];
  const rows = others.map(([other, likely]) => row(other, likely));
  if (probability !== null) rows.unshift(row(word, probability, "said"));
  if (rest !== null) rows.push(row("all other words", rest));
  return [make("table", "", make("caption", "", "The most probable next words, according to the model"), ...rows)];
}

// To a screen reader. Nothing is said before the reader has touched anything.
const say = text => document.getElementById("said").textContent = text;

function choose(section, index) {
  const picture = pictures[sections.indexOf(section)], chosen = picture.words[index];
  if (section.chosen === index) return;
  section.chosen = index;
  section.querySelectorAll(".words li").forEach((item, i) => {
    item.setAttribute("aria-selected", i === index);
    item.tabIndex = i === index ? 0 : -1;  // Tab leads to the chosen word, the arrow keys to the others
  });
  glide(section, picture, chosen.weights.map(weight => weight / 999));
  section.querySelector(".largest").textContent = chosen.largest;
  section.querySelector(".detail").replaceChildren(...describe(chosen));
}

const moves = { ArrowLeft: i => i - 1, ArrowUp: i => i - 1, ArrowRight: i => i + 1, ArrowDown: i => i + 1,
                Home: () => 0, End: (i, last) => last };

function enliven(section, number) {
  const list = section.querySelector(".words"), canvas = section.querySelector("canvas");
  const items = [...list.children], picture = pictures[number];
  canvas.width = Math.max(1, Math.round(SIDE * Math.min(1, picture.ratio)));
  canvas.height = Math.max(1, Math.round(SIDE * Math.min(1, 1 / picture.ratio)));
  if (!items.length) return;
  section.querySelectorAll("[hidden]").forEach(element => element.hidden = false);
  list.setAttribute("role", "listbox");
  list.setAttribute("aria-orientation", "horizontal");
  items.forEach(item => item.setAttribute("role", "option"));
  choose(section, 0);
  const turnTo = (index, focus) => {
    if (index < 0 || index >= items.length) return;
    choose(section, index);
    say(picture.words[index].said);
    if (focus) items[index].focus();
  };
  list.addEventListener("pointerover", event => turnTo(items.indexOf(event.target.closest("li")), false));
  list.addEventListener("click", event => turnTo(items.indexOf(event.target.closest("li")), true));
  list.addEventListener("keydown", event => {
    const move = moves[event.key];
    if (!move || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    turnTo(move(section.chosen, items.length - 1), true);
  });
}

// ---- the pictures ----

function show(number) {
  shown = (number + sections.length) % sections.length;
  sections.forEach((section, i) => section.hidden = i !== shown);
  document.getElementById("place").textContent = `picture ${shown + 1} of ${sections.length}`;
}

function turnPage(by) {
  show(shown + by);
  const { caption, words } = pictures[shown], chosen = words[sections[shown].chosen];
  say(`Picture ${shown + 1} of ${sections.length}: ${caption}. ${chosen ? chosen.said : ""}`);
}

sections.forEach(enliven);
document.querySelector("nav").hidden = sections.length < 2;
document.getElementById("previous").addEventListener("click", () => turnPage(-1));
document.getElementById("next").addEventListener("click", () => turnPage(1));
show(0);
