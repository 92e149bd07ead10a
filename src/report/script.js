// Reads values out of charts and hides runs. Without it the page shows all the same.
"use strict";
(() => {
  document.documentElement.classList.add("live");
  const hidden = new Set();

  const element = (name, className, text) => {
    const made = document.createElement(name);
    made.className = className;
    // As text: names come from files.
    made.textContent = text;
    return made;
  };

  // The position of the value in ascending `all` that is nearest to `wanted`.
  const nearest = (all, wanted) => {
    let low = 0, high = all.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (all[middle] < wanted) low = middle + 1; else high = middle;
    }
    return low > 0 && wanted - all[low - 1] <= all[low] - wanted ? low - 1 : low;
  };

  for (const figure of document.querySelectorAll("figure.chart")) {
    const svg = figure.querySelector("svg");
    const cursor = svg.querySelector(".cursor");
    const data = JSON.parse(figure.querySelector("script").textContent);
    const [first, last] = data.epochs, [left, right] = data.places;
    for (const series of data.series) {
      const from = series.epochs;
      if (!Array.isArray(from)) series.epochs = series.values.map((_, index) => from + index);
    }
    const all = [...new Set(data.series.flatMap(series => series.epochs))].sort((a, b) => a - b);
    if (all.length === 0) continue;
    // Of thinned curves, not every one has a point at every epoch.
    const reach = (last - first) / 150;
    const tip = element("div", "tip", "");
    tip.setAttribute("role", "status");
    figure.append(tip);
    let at = -1;

    const hide = () => {
      at = -1;
      tip.replaceChildren();
      cursor.classList.remove("on");
    };
    const show = position => {
      at = Math.min(Math.max(position, 0), all.length - 1);
      const epoch = all[at];
      const place = left + (right - left) * (epoch - first) / (last - first);
      const { width, height } = svg.viewBox.baseVal;
      for (const [name, value] of [["x1", place * width], ["x2", place * width], ["y1", 20], ["y2", height - 24]]) {
        cursor.setAttribute(name, value);
      }
      cursor.classList.add("on");
      tip.replaceChildren(element("b", "", `epoch ${epoch}`));
      // The highest value first, as the curves lie.
      const lines = [];
      for (const series of data.series) {
        if (hidden.has(series.run)) continue;
        const index = nearest(series.epochs, epoch);
        if (Math.abs(series.epochs[index] - epoch) > reach) continue;
        lines.push([series.values[index], series]);
      }
      lines.sort((a, b) => b[0] - a[0]);
      for (const [value, series] of lines) {
        const line = element("div", `c${series.colour}${series.dashed ? " test" : ""}`, "");
        const name = element("span", "", series.name);
        name.prepend(element("i", "swatch", ""));
        line.append(name, element("b", "", Number(value).toPrecision(4)));
        tip.append(line);
      }
      // On the side where the cursor is not.
      const leftHalf = place < (left + right) / 2;
      tip.style.left = leftHalf ? "auto" : `${100 * left + 1}%`;
      tip.style.right = leftHalf ? `${100 * (1 - right) + 1}%` : "auto";
    };

    svg.addEventListener("pointermove", event => {
      const box = svg.getBoundingClientRect();
      const part = ((event.clientX - box.left) / box.width - left) / (right - left);
      show(nearest(all, first + part * (last - first)));
    });
    svg.addEventListener("pointerleave", hide);
    svg.tabIndex = 0;
    svg.addEventListener("blur", hide);
    svg.addEventListener("keydown", event => {
      const to = {
        ArrowLeft: () => show(at < 0 ? all.length - 1 : at - 1),
        ArrowRight: () => show(at + 1),
        Home: () => show(0),
        End: () => show(all.length - 1),
        Escape: hide,
      }[event.key];
      if (to) {
        event.preventDefault();
        to();
      }
    });
  }

  for (const button of document.querySelectorAll(".legend button")) {
    button.setAttribute("aria-pressed", "true");
    button.title = "Show or hide this run";
    button.addEventListener("click", () => {
      const run = Number(button.dataset.run);
      const show = hidden.delete(run);
      if (!show) hidden.add(run);
      button.setAttribute("aria-pressed", show);
      for (const part of document.querySelectorAll(`svg [data-run="${run}"]`)) {
        part.classList.toggle("off", !show);
      }
    });
  }
})();
