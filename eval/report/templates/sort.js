"use strict";
// A click on a column's head, or Enter, sorts its table; numbers by size, what has none last.
const value = (row, column) => {
  const text = row.cells[column].textContent.trim().replace(/,/g, "");
  return /^[-+]?\.?\d/.test(text) ? parseFloat(text) : text;
};
const compare = (a, b) => {
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return typeof a === "number" ? a - b : a.localeCompare(b);
};
const sort = (head) => {
  const down = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  const body = head.closest("table").tBodies[0], column = head.cellIndex;
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down === 1 ? "ascending" : "descending");
  const rows = [...body.rows].sort((a, b) => down * compare(value(a, column), value(b, column)));
  body.append(...rows);
};
for (const head of document.querySelectorAll("th")) {
  head.tabIndex = 0;
  head.addEventListener("click", () => sort(head));
  head.addEventListener("keydown", (event) => event.key === "Enter" && sort(head));
}
