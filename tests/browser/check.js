// Runs at the end of a report's page: looks at what was drawn as a reader would, and leaves what it
// found as JSON in the page.
(() => {
  // What is folded has no size.
  document.querySelectorAll("details").forEach(details => { details.open = true; });
  const box = element => element.getBoundingClientRect();
  const found = {
    width: innerWidth,
    title: document.querySelector("h1").textContent,
    scroll: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    resources: performance.getEntriesByType("resource").map(entry => entry.name),
    background: getComputedStyle(document.body).backgroundColor,
    charts: 0, curves: 0, labels: 0, empty: [], flat: [], overlaps: [], outside: [],
  };

  for (const figure of document.querySelectorAll("figure.chart")) {
    found.charts += 1;
    const title = figure.querySelector("b").textContent;
    const svg = figure.querySelector("svg");
    const scale = box(svg).width / svg.viewBox.baseVal.width;
    for (const curve of svg.querySelectorAll(".curve, .dot, .mark, .ring")) {
      const { width, height } = box(curve);
      found.curves += curve.matches(".curve, .dot");
      if (!(width > 0)) found.empty.push(`${title}: ${curve.getAttribute("class")}`);
      // As of a value that does not change.
      if (!(height > 0)) found.flat.push(title);
    }
    // From the first grid line's left to the axis' right, and from the cursor's upper end down.
    const axis = box(svg.querySelector(".axis"));
    const plot = { left: axis.left, right: axis.right, top: box(svg).top + 20 * scale, bottom: axis.top };
    const meets = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
    // A text's box has room above and below its digits.
    const texts = [...svg.querySelectorAll("text")].map(text => {
      const { left, right, top, bottom, height } = box(text);
      return { text: text.textContent, left, right, top: top + 0.2 * height, bottom: bottom - 0.25 * height };
    });
    found.labels += texts.length;
    texts.forEach((text, index) => {
      if (!(text.right > text.left)) found.empty.push(`${title}: ${text.text}`);
      if (meets(text, plot)) found.overlaps.push(`${title}: ${text.text} in the plot`);
      for (const other of texts.slice(index + 1)) {
        if (meets(text, other)) found.overlaps.push(`${title}: ${text.text} and ${other.text}`);
      }
      const around = box(figure);
      if (text.left < around.left - 0.5 || text.right > around.right + 0.5) {
        found.outside.push(`${title}: ${text.text}`);
      }
    });
    // Names are in their place for who does not see the picture.
    const named = svg.getAttribute("aria-labelledby").split(" ").map(id => document.getElementById(id));
    if (!named.every(element => element && svg.contains(element) && element.textContent)) {
      found.empty.push(`${title}: its description`);
    }
  }

  // The pointer at the right end of the first chart, then the keyboard at its left end.
  const figure = document.querySelector("figure.chart");
  const svg = figure.querySelector("svg");
  const axis = box(svg.querySelector(".axis"));
  const tip = figure.querySelector(".tip");
  const read = () => [...tip.querySelectorAll("b, span")].map(part => part.textContent);
  const at = { clientX: axis.right + 1, clientY: axis.top - 20, bubbles: true };
  svg.dispatchEvent(new PointerEvent("pointermove", at));
  found.pointer = read();
  const { left, right, width, height } = box(tip), around = box(figure);
  found.tip = width > 0 && height > 0 && left >= around.left && right <= around.right;
  found.cursor = getComputedStyle(svg.querySelector(".cursor")).visibility;
  svg.dispatchEvent(new PointerEvent("pointerleave"));
  found.left = read();
  svg.dispatchEvent(new KeyboardEvent("keydown", { key: "Home" }));
  found.keyboard = read();
  svg.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" }));

  // A run is hidden and shown again.
  const seen = () => [...document.querySelectorAll("svg [data-run]")].filter(part => box(part).width > 0).length;
  const button = document.querySelector(".legend button");
  if (button) {
    const before = seen();
    button.click();
    const hidden = seen();
    button.click();
    found.toggled = [before, hidden, seen()];
  }

  found.problems = window.problems;
  const outcome = document.createElement("pre");
  outcome.id = "outcome";
  outcome.hidden = true;
  outcome.textContent = JSON.stringify(found);
  document.body.append(outcome);
})();
