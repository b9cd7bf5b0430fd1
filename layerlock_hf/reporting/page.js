"use strict";

// Charts: the values at the step under the pointer, or at the one that the arrow keys have reached
for (const figure of document.querySelectorAll(".chart")) {
  const { steps, names, values, x } = JSON.parse(figure.dataset.points);
  const svg = figure.querySelector("svg");
  const cursor = figure.querySelector(".cursor");
  const reading = figure.querySelector(".reading");
  let place = steps.length - 1;

  const show = (next) => {
    place = Math.max(0, Math.min(steps.length - 1, next));
    cursor.setAttribute("transform", `translate(${x[place]})`);
    cursor.setAttribute("visibility", "visible");
    const told = names
      .map((name, line) => [name, values[line][place]])
      .filter(([, value]) => value !== null)
      .map(([name, value]) => (names.length > 1 ? `${name} ${value}` : `${value}`));
    reading.textContent = `step ${steps[place].toLocaleString("en")}: ${told.join(", ") || "no number"}`;
  };
  const hide = () => {
    cursor.setAttribute("visibility", "hidden");
    reading.textContent = "\u00a0";
  };
  const nearest = (at) => {
    let best = 0;
    x.forEach((one, index) => {
      if (Math.abs(one - at) < Math.abs(x[best] - at)) best = index;
    });
    return best;
  };

  svg.addEventListener("pointermove", (event) => {
    // In units of the picture, which keeps its shape within whatever box it has
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    show(nearest(point.x));
  });
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    show(place + by);
  });
}

// Features: the sliders choose one of the pictures of the sheet below them
const viewer = document.getElementById("viewer");
if (viewer) {
  const stage = document.getElementById("stage");
  const depth = document.getElementById("depth");
  const shown = document.getElementById("shown");
  const note = document.getElementById("note");

  const choose = () => {
    const chosen = document.querySelector(`.sheet img[data-stage="${stage.value}"][data-depth="${depth.value}"]`);
    const { name, step, layer, frozen } = chosen.dataset;
    shown.src = chosen.src;
    shown.alt = chosen.alt;
    const at = `${name}, step ${Number(step).toLocaleString("en")}`;
    document.getElementById("stage-name").textContent = at;
    document.getElementById("depth-name").textContent = `after layer ${layer}`;
    stage.setAttribute("aria-valuetext", at);
    depth.setAttribute("aria-valuetext", `after layer ${layer}`);
    const isFrozen = Number(layer) <= Number(frozen);
    note.textContent =
      frozen === "0"
        ? "No layer is frozen."
        : `${frozen === "1" ? "Layer 1 is" : `Layers 1 to ${frozen} are`} frozen, ` +
          (isFrozen ? "so this picture stays as it is from here on." : "this one is not.");
  };
  stage.addEventListener("input", choose);
  depth.addEventListener("input", choose);
  choose();
}

// On paper nothing unfolds
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => (one.open = true)));
