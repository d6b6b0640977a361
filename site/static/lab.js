// The report's table: filters that the address keeps (REPORT.html?chapter=03_gate_analysis), and
// columns to sort by. Without this script the table shows all rows.
const form = document.getElementById("filters");
const table = document.getElementById("rows");
if (form && table) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const count = form.querySelector("output");
  const fields = [...form.elements].filter((field) => field.name);
  const words = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));

  const fits = (row, field) => {
    const value = field.value.trim();
    if (!value) return true;
    if (field.name === "n") return Number(row.cells[4].textContent) >= Number(value);
    if (field.name === "words") return value.toLowerCase().split(/\s+/).every((word) => words.get(row).includes(word));
    return row.dataset[field.name] === value;
  };
  const filter = () => {
    for (const row of rows) row.hidden = !fields.every((field) => fits(row, field));
    count.textContent = count.dataset.text
      .replace("SHOWN", rows.filter((row) => !row.hidden).length).replace("ALL", rows.length);
    const set = fields.filter((field) => field.value).map((field) => [field.name, field.value]);
    const query = new URLSearchParams(set).toString();
    history.replaceState(null, "", (query ? `?${query}` : location.pathname) + location.hash);
  };

  const value = (row, column) => row.cells[column].textContent.trim();
  const compare = (a, b) => {
    const [x, y] = [parseFloat(a), parseFloat(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y || a.localeCompare(b);
  };
  const sort = (head) => {
    const column = head.cellIndex;
    const order = head.ariaSort === "ascending" ? "descending" : "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.ariaSort = order;
    const sign = order === "ascending" ? 1 : -1;
    const empty = (row) => value(row, column) === "";
    rows.sort((a, b) => empty(a) - empty(b) || sign * compare(value(a, column), value(b, column)));
    body.append(...rows);
  };
  for (const head of [...table.tHead.rows[0].cells].slice(0, -1)) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(head));
    head.append(button);
  }

  const asked = new URLSearchParams(location.search);
  for (const field of fields) if (asked.has(field.name)) field.value = asked.get(field.name);
  form.addEventListener("input", filter);
  form.addEventListener("reset", () => setTimeout(filter));
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  filter();
}

// A formula that is wider than the page scrolls, by keyboard too.
document.fonts.ready.then(() => {
  for (const formula of document.querySelectorAll("div.math"))
    if (formula.scrollWidth > formula.clientWidth) formula.tabIndex = 0;
});

// The other language opens at the same place.
const other = document.querySelector("a.language");
other?.addEventListener("click", () => (other.href = other.href.split(/[?#]/)[0] + location.search + location.hash));

// Paper is light, whatever the screen is.
const page = document.documentElement;
matchMedia("print").addEventListener("change", ({ matches }) => {
  if (matches) page.dataset.screen = page.dataset.theme;
  page.dataset.theme = matches ? "light" : page.dataset.screen;
});
