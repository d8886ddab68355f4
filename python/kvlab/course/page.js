"use strict";
// Only what differs from the state that the page was made with is kept: a page made anew shows what is new in it.
const KEY = "kvlab-course";
const boxes = [...document.querySelectorAll("input[data-item]")];
const seed = new Set(JSON.parse(document.getElementById("seed").textContent));
let own = {};

function load() {
  try {
    own = JSON.parse(localStorage.getItem(KEY) ?? "{}");
  } catch (error) {
    own = {};
    document.getElementById("kept").textContent = `Ticks are not kept: ${error.message}`;
  }
  for (const box of boxes) box.checked = own[box.id] ?? seed.has(box.id);
  show();
}

function keep() {
  own = Object.fromEntries(boxes.filter((b) => b.checked !== seed.has(b.id)).map((b) => [b.id, b.checked]));
  try {
    localStorage.setItem(KEY, JSON.stringify(own));
  } catch (error) {
    document.getElementById("kept").textContent = `Ticks are not kept: ${error.message}`;
  }
  show();
}

function show() {
  for (const part of document.querySelectorAll("[data-part]")) {
    const mine = boxes.filter((box) => box.id.startsWith(part.dataset.part));
    const done = mine.filter((box) => box.checked).length;
    part.querySelector(".count").textContent = `${done} of ${mine.length} resident, ${mine.length - done} cold`;
    part.querySelector(".bar i").style.width = `${(100 * done) / mine.length}%`;
  }
  const named = (ticked) => Object.keys(own).filter((id) => own[id] === ticked).sort().join(" ");
  const lines = [["done", named(true)], ["undo", named(false)]].filter(([, ids]) => ids);
  document.querySelector("#told pre").textContent = lines.map(([verb, ids]) => `kvlab course ${verb} ${ids}`).join("\n");
  document.getElementById("told").hidden = lines.length === 0;
}

for (const box of boxes) box.addEventListener("change", keep);
// Another tab of the same page.
addEventListener("storage", (event) => { if (event.key === KEY) load(); });
load();
