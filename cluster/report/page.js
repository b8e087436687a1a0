"use strict";
(() => {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const themes = JSON.parse(document.getElementById("themes").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const said = (mark) => Object.entries(mark.__data__.tooltip).map(([key, value]) => `${key}: ${value}`).join(", ");

  async function draw() {
    document.body.dataset.drawn = "0";
    const options = { actions: false, renderer: "svg", config: dark.matches ? themes.dark : themes.light };
    for (const [name, spec] of Object.entries(charts)) {
      await vegaEmbed(document.getElementById(name), spec, options);
    }
    document.body.dataset.drawn = String(Object.keys(charts).length);
  }

  // Arrow keys go from mark to mark and say below the picture what hovering shows; Escape forgets it.
  function step(event) {
    const moves = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity, Escape: 0 };
    const move = moves[event.key];
    if (move === undefined) return;
    const box = event.currentTarget;
    const marks = [...box.querySelectorAll("path, rect")].filter((mark) => mark.__data__ && mark.__data__.tooltip);
    if (!marks.length) return;
    event.preventDefault();
    const before = marks.findIndex((mark) => mark.classList.contains("chosen"));
    if (before >= 0) marks[before].classList.remove("chosen");
    const output = box.parentElement.querySelector("output");
    output.textContent = "";
    if (move === 0) return;
    const wanted = before < 0 && move === 1 ? 0 : before + move;
    const mark = marks[Math.min(Math.max(wanted, 0), marks.length - 1)];
    mark.classList.add("chosen");
    output.textContent = said(mark);
  }

  for (const name of Object.keys(charts)) document.getElementById(name).addEventListener("keydown", step);
  dark.addEventListener("change", draw);
  draw();
})();
