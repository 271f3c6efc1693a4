// The table sorts and filters, and an exposure's picture opens. Nothing is asked of a network.
"use strict";
(() => {
  const table = document.getElementById("table"), body = table.tBodies[0], rows = [...body.rows];
  const headers = [...table.tHead.rows[0].cells], words = document.getElementById("words");
  const choices = [...document.querySelectorAll("select[data-column]")];
  const dialog = document.getElementById("picture"), content = document.getElementById("content");
  const pictures = new Map(), { digest, per } = document.body.dataset;
  let shown = -1;

  const value = (row, column) => row.cells[column].dataset.v ?? row.cells[column].textContent;
  function sort(column) {
    const header = headers[column], down = header.ariaSort === "ascending", numbers = header.classList.contains("n");
    for (const other of headers) other.ariaSort = "none";
    header.ariaSort = down ? "descending" : "ascending";
    const text = new Intl.Collator("en", { numeric: true });
    const keys = new Map(rows.map((row) => [row, numbers ? Number(value(row, column) || NaN) : value(row, column)]));
    // What is not known comes last, whichever way.
    rows.sort((a, b) => {
      const x = keys.get(a), y = keys.get(b);
      if (numbers && (isNaN(x) || isNaN(y))) return isNaN(x) - isNaN(y);
      return (numbers ? x - y : text.compare(x, y)) * (down ? -1 : 1);
    });
    body.append(...rows);
  }
  headers.forEach((header, column) => header.firstElementChild.addEventListener("click", () => sort(column)));

  function filter() {
    const sought = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = choices.map((c) => [headers.findIndex((h) => h.dataset.key === c.dataset.column), c.value]);
    let count = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !(sought.every((word) => text.includes(word)) &&
        wanted.every(([column, choice]) => !choice || row.cells[column].textContent === choice));
      count += !row.hidden;
    }
    document.querySelector("output").textContent = `${count} of ${rows.length}`;
  }
  words.addEventListener("input", filter);
  choices.forEach((choice) => choice.addEventListener("change", filter));
  document.querySelector("form").addEventListener("submit", (event) => event.preventDefault());

  // Pictures stand in the page, or where there are many, in scripts beside it, each for some exposures.
  globalThis.skylevelPictures = (first, fragments) => fragments.forEach((html, i) => {
    const template = document.createElement("template");
    template.innerHTML = html;
    pictures.set(first + i, template);
  });
  function load(index, then) {
    const template = document.getElementById(`x${index}`) ?? pictures.get(index);
    if (template) return then(template.content.cloneNode(true));
    const script = document.createElement("script"), pack = Math.floor(index / per);
    script.src = `report/${digest}-${pack}.js`;
    script.onload = () => { script.remove(); if (pictures.has(index)) load(index, then); };
    script.onerror = () => { script.remove(); then("The pictures of this page are gone: load it again."); };
    document.head.append(script);
  }
  function open(index) {
    shown = index;
    const row = rows.find((r) => Number(r.dataset.index) === index);
    document.getElementById("picture-name").textContent = row.cells[0].textContent;
    content.replaceChildren("…");
    if (!dialog.open) dialog.showModal();
    load(index, (what) => { if (shown === index) { content.replaceChildren(what); outlines(); dialog.scrollTop = 0; } });
  }
  function step(by) {
    const visible = rows.filter((row) => !row.hidden), at = visible.findIndex((r) => Number(r.dataset.index) === shown);
    const next = visible[at + by];
    if (next) open(Number(next.dataset.index));
  }
  let outlined = true;
  function outlines() {
    for (const box of content.querySelectorAll("input.outlines")) box.checked = outlined;
    content.classList.toggle("bare", !outlined);
  }
  content.addEventListener("change", (event) => { outlined = event.target.checked; outlines(); });
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button.open");
    if (button) open(Number(button.dataset.index ?? button.closest("tr").dataset.index));
  });
  document.getElementById("previous").addEventListener("click", () => step(-1));
  document.getElementById("next").addEventListener("click", () => step(1));
  document.getElementById("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
})();
