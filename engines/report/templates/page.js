"use strict";
// The slider: a native range input lies over the picture, so that keys, touch and screen readers work by themselves.
for (const compare of document.querySelectorAll(".compare")) {
  const stage = compare.querySelector(".stage");
  const range = stage.querySelector("input");
  const picture = compare.querySelector("[data-choose=picture]");
  const left = compare.querySelector("[data-choose=left]");
  const right = compare.querySelector("[data-choose=right]");
  const move = () => {
    stage.style.setProperty("--at", `${range.value}%`);
    range.setAttribute("aria-valuetext", `${Math.round(range.value)} % ${left.selectedOptions[0].text}`);
  };
  const show = () => {
    for (const stack of stage.querySelectorAll(".stack")) {
      stack.hidden = stack.dataset.picture !== picture.value;
      for (const image of stack.querySelectorAll("img")) {
        image.classList.toggle("left", image.dataset.variant === left.value);
        image.classList.toggle("right", image.dataset.variant === right.value);
      }
    }
    for (const note of compare.querySelectorAll("[data-note]")) note.hidden = note.dataset.note !== picture.value;
    compare.querySelector(".on-left").textContent = left.selectedOptions[0].text;
    compare.querySelector(".on-right").textContent = right.selectedOptions[0].text;
    move();
  };
  range.addEventListener("input", move);
  for (const choice of [picture, left, right]) choice.addEventListener("change", show);
  show();
}
// Tables: a click on a heading sorts by the exact value of its column, rows without one always last.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = heading.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const descending = heading.getAttribute("aria-sort") === "ascending";
      for (const other of headings) if (other.querySelector("button")) other.setAttribute("aria-sort", "none");
      heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const numeric = heading.classList.contains("num");
      const key = (row) => {
        const cell = row.cells[column];
        const value = cell.dataset.value ?? cell.textContent.trim();
        return value === "" ? null : numeric ? Number(value) : value;
      };
      const compare = (a, b) => {
        if (a === null || b === null) return (a === null) - (b === null);
        const order = numeric ? a - b : a.localeCompare(b, undefined, { numeric: true });
        return descending ? -order : order;
      };
      const body = table.tBodies[0];
      body.append(...[...body.rows].sort((a, b) => compare(key(a), key(b))));
    });
  });
}
