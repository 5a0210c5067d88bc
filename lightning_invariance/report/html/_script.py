"""What a page does: tables are sorted, and one of several parts is shown.

Without it everything is shown, in the order in which it was given.
"""

SCRIPT = """
"use strict";

// A click on a heading sorts up, the next one down, the third one gives the first order back.
const NEXT = {none: "ascending", ascending: "descending", descending: "none"};

function sortable(table) {
  const body = table.tBodies[0];
  const first = Array.from(body.rows);
  const headings = Array.from(table.tHead.rows[0].cells);

  function sort(column, direction) {
    const numeric = headings[column].classList.contains("number");
    const key = (row) => {
      const cell = row.cells[column];
      if (numeric) return cell.dataset.number === "" ? null : Number(cell.dataset.number);
      return cell.dataset.number === "" ? null : cell.textContent;
    };
    const compare = numeric
      ? (a, b) => (a < b ? -1 : a > b ? 1 : 0)
      : (a, b) => a.localeCompare(b, "en", {numeric: true});
    const sign = direction === "descending" ? -1 : 1;
    const known = first.filter((row) => key(row) !== null);
    const missing = first.filter((row) => key(row) === null);
    known.sort((a, b) => sign * compare(key(a), key(b)));
    body.append(...known, ...missing);
  }

  headings.forEach((heading, column) => {
    if (heading.tagName !== "TH") return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    heading.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const direction = NEXT[heading.getAttribute("aria-sort")];
      for (const each of headings) if (each.hasAttribute("aria-sort")) each.setAttribute("aria-sort", "none");
      heading.setAttribute("aria-sort", direction);
      if (direction === "none") body.append(...first);
      else sort(column, direction);
    });
  });
}

function choosing(chooser) {
  const parts = Array.from(document.querySelectorAll(".choice"));
  const radios = Array.from(chooser.querySelectorAll("input"));

  function choose(value) {
    for (const radio of radios) radio.checked = radio.value === value;
    for (const part of parts) part.hidden = value !== "" && part.id !== value;
  }

  // An address that ends in "#part-2", or in the name of something inside of it, shows that part.
  function follow() {
    const target = document.getElementById(location.hash.slice(1));
    const part = target && target.closest(".choice");
    if (part) {
      choose(part.id);
      target.scrollIntoView();
    }
  }

  chooser.hidden = false;
  for (const radio of radios) radio.addEventListener("change", () => choose(radio.value));
  window.addEventListener("hashchange", follow);
  choose(parts[0].id);
  follow();
}

document.querySelectorAll("table.sortable").forEach(sortable);
document.querySelectorAll(".chooser").forEach(choosing);
"""
