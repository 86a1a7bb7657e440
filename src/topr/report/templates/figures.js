// Values under the pointer in the charts, which are there without this script. A chart says in
// data-x and data-y where its axes end; the numbers below are those of topr/report/svg.py.
"use strict";
(() => {
  const [LEFT, RIGHT, TOP, BOTTOM, WIDTH] = [44, 350, 24, 184, 360];
  const tip = document.getElementById("tip");

  function showTip(text, x, y) {
    tip.textContent = text;
    tip.hidden = false;
    tip.style.left = `${Math.max(8, Math.min(x + 14, innerWidth - tip.offsetWidth - 8))}px`;
    const below = y + 16;
    tip.style.top = `${below + tip.offsetHeight < innerHeight ? below : y - tip.offsetHeight - 12}px`;
  }

  function hideTip() {
    tip.hidden = true;
    document.querySelectorAll(".cursor").forEach((mark) => mark.remove());
  }

  function pointsOf(path) {
    path.points ??= [...path.getAttribute("d").matchAll(/[ML]([-\d.]+) ([-\d.]+)/g)].map((m) => [Number(m[1]), Number(m[2])]);
    return path.points;
  }

  function ends(svg, name) {
    return svg.dataset[name].split(" ").map(Number);
  }

  // Two digits more than the size of the axis asks for, without a tail of zeros.
  function shown(value, range) {
    const digits = Math.max(0, Math.min(12, 2 - Math.floor(Math.log10(range))));
    return String(Number(value.toFixed(digits))).replace("-", "−");
  }

  function hover(svg, event) {
    const box = svg.getBoundingClientRect();
    const at = ((event.clientX - box.left) * WIDTH) / box.width;
    const [x0, x1] = ends(svg, "x");
    const [y0, y1] = ends(svg, "y");
    const percent = "percent" in svg.dataset;
    hideTip();
    const found = [...svg.querySelectorAll("path.line")].filter((path) => pointsOf(path).length).map((path) => {
      const near = pointsOf(path).reduce((a, b) => (Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a));
      return { path, near };
    });
    if (!found.length) return;
    const lines = found.map(({ path, near }) => {
      const mark = document.createElementNS("http://www.w3.org/2000/svg", "circle");
      Object.entries({ class: "cursor", cx: near[0], cy: near[1], r: 3.5 }).forEach((pair) => mark.setAttribute(...pair));
      mark.style.fill = path.style.stroke;
      svg.append(mark);
      const value = y0 + ((BOTTOM - near[1]) / (BOTTOM - TOP)) * (y1 - y0);
      const text = percent ? `${shown(100 * value, 100 * (y1 - y0))} %` : shown(value, y1 - y0);
      return `${text}  ${path.dataset.name}`;
    });
    const step = x0 + ((found[0].near[0] - LEFT) / (RIGHT - LEFT)) * (x1 - x0);
    showTip([`step ${Math.round(step)}`, ...lines].join("\n"), event.clientX, event.clientY);
  }

  for (const svg of document.querySelectorAll("svg.chart")) {
    if (svg.querySelector(".point, rect")) continue; // these have titles of their own
    svg.addEventListener("pointermove", (event) => hover(svg, event));
    svg.addEventListener("pointerleave", hideTip);
  }
  document.addEventListener("scroll", hideTip, true);
  globalThis.topr = { showTip, hideTip };
})();
