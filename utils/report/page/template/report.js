"use strict";
// Values of points and cells at the pointer, without the delay of the browser's own hints.
const tip = document.createElement("div");
tip.id = "tip";
document.body.append(tip);
function hint(element) {
  const title = element.querySelector(":scope > title");
  if (title) { element.dataset.tip = title.textContent; title.remove(); }
  else if (element.title) { element.dataset.tip = element.title; element.removeAttribute("title"); }
  return element.dataset.tip;
}
addEventListener("pointerover", event => {
  const element = event.target.closest("use, .r td");
  const text = element && hint(element);
  tip.style.display = text ? "block" : "none";
  if (!text) return;
  tip.textContent = text;
  const box = element.getBoundingClientRect();
  const left = Math.min(box.right + 8, innerWidth - tip.offsetWidth - 4);
  tip.style.left = Math.max(4, left) + "px";
  tip.style.top = Math.max(4, box.top - tip.offsetHeight - 6) + "px";
});
// A name in a legend lifts its line out of the others.
for (const item of document.querySelectorAll(".legend li")) {
  const drawing = item.closest("figure").querySelector(":scope > svg");
  const line = drawing.querySelector(`g[data-s="${item.dataset.s}"]`);
  const set = on => { drawing.classList.toggle("dimmed", on); line.classList.toggle("on", on); };
  item.addEventListener("pointerenter", () => set(true));
  item.addEventListener("pointerleave", () => set(false));
}
// A click on the title of a column sorts the table; the row "chance" stays last.
for (const table of document.querySelectorAll("table.sorted")) {
  table.querySelectorAll("thead th").forEach((head, column) => {
    head.setAttribute("aria-sort", "none");
    head.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      table.querySelectorAll("thead th").forEach(other => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = row => row.cells[column].textContent.trim();
      const plain = text => parseFloat(text.replace(/,/g, ""));
      const rows = [...table.tBodies[0].rows].filter(row => !row.classList.contains("last"));
      rows.sort((a, b) => {
        const [x, y] = [plain(value(a)), plain(value(b))];
        const order = isNaN(x) || isNaN(y) ? isNaN(x) - isNaN(y) || value(a).localeCompare(value(b)) : y - x;
        return down || (isNaN(x) !== isNaN(y)) ? order : -order;
      });
      const last = table.tBodies[0].querySelector(".last");
      for (const row of rows) table.tBodies[0].insertBefore(row, last);
    });
  });
}
// The search above the forgotten examples.
for (const field of document.querySelectorAll("input[type=search]")) {
  field.hidden = false;
  field.addEventListener("input", () => {
    const wanted = field.value.toLowerCase();
    for (const row of field.closest("section").querySelectorAll(".examples tbody tr")) {
      row.hidden = !row.textContent.toLowerCase().includes(wanted);
      if (wanted && !row.hidden) row.closest("details").open = row.closest("details").parentElement.open = true;
    }
  });
}
