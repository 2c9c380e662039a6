"use strict";
// Everything is there without scripts; these add sorting, finding and enlarging.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down === 1 ? "ascending" : "descending");
      // By value where the column holds numbers; unknown values last either way.
      const key = (row) => {
        const cell = row.cells[column], text = cell.textContent.trim();
        if (!head.classList.contains("num")) return text;
        return cell.dataset.value ?? text.replace("\u2212", "-").replaceAll("\u202f", "");
      };
      const order = (a, b) => {
        const [x, y] = [a.key, b.key];
        if (!head.classList.contains("num")) return x.localeCompare(y, undefined, { numeric: true });
        const [p, q] = [parseFloat(x), parseFloat(y)];
        if (isNaN(p) || isNaN(q)) return (isNaN(p) - isNaN(q)) * down;
        return p - q;
      };
      const rows = [...body.rows].map((row) => ({ row, key: key(row) }));
      rows.sort((a, b) => order(a, b) * down);
      body.append(...rows.map((entry) => entry.row));
    });
  });
}

for (const filter of document.querySelectorAll(".filter")) {
  const search = filter.querySelector("input[type=search]"), failed = filter.querySelector(".only-failed");
  const rows = [...filter.parentElement.querySelector("table.cohort").tBodies[0].rows];
  const apply = () => {
    const wanted = search.value.trim().toLowerCase();
    let shown = 0;
    for (const row of rows) {
      const hit = row.textContent.toLowerCase().includes(wanted) && !(failed?.checked && !row.classList.contains("failed"));
      row.hidden = !hit;
      shown += hit;
    }
    filter.querySelector("output").textContent = shown < rows.length ? `${shown} of ${rows.length} shown` : "";
  };
  filter.addEventListener("input", apply);
  filter.hidden = false;
}

const dialog = document.querySelector("dialog");
for (const button of document.querySelectorAll(".zoom")) {
  button.addEventListener("click", () => {
    const small = button.querySelector("img"), large = dialog.querySelector("img");
    large.src = small.src;
    large.alt = small.alt;
    dialog.querySelector("figcaption").textContent = button.closest("figure").querySelector("figcaption").innerText;
    dialog.showModal();
  });
}
dialog.addEventListener("click", (event) => { if (event.target !== event.currentTarget.querySelector("form button")) dialog.close(); });
