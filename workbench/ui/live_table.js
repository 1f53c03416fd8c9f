// Draws props.value (JSON: {columns, rows, ids, selected, empty}) as a table. Every cell is set as
// text, never as markup. A click on a heading sorts, a click on a row triggers 'pick' with its id;
// order, selection and scroll place survive updates.
const box = element.querySelector(".wb-table");
let order = null; // {column, down}
let selected = null;

function shown(value, column) {
  if (value === null) return "–";
  return column.digits === undefined ? String(value) : value.toFixed(column.digits);
}

function sorted(rows) {
  const places = rows.map((_, at) => at);
  if (!order) return places;
  const sign = order.down ? -1 : 1;
  const compare = (a, b) => {
    const [x, y] = [rows[a][order.column], rows[b][order.column]];
    if (x === null || y === null) return (x === null) - (y === null);
    return sign * (typeof x === "number" ? x - y : String(x).localeCompare(String(y)));
  };
  return places.sort(compare);
}

function make(tag, text, parent) {
  const node = document.createElement(tag);
  node.textContent = text;
  parent.appendChild(node);
  return node;
}

function draw() {
  const table = JSON.parse(props.value || '{"columns": [], "rows": [], "ids": []}');
  if (table.selected !== undefined) selected = table.selected;
  const top = box.scrollTop;
  box.replaceChildren();
  if (!table.rows.length) {
    make("p", table.empty || "", box);
    return;
  }
  const grid = make("table", "", box);
  const head = make("tr", "", make("thead", "", grid));
  table.columns.forEach((column, at) => {
    const cell = make("th", "", head);
    const arrow = order && order.column === at ? (order.down ? " ▼" : " ▲") : "";
    const button = make("button", column.label + arrow, cell);
    button.title = column.help || "sort";
    if (column.digits !== undefined) cell.classList.add("number");
    button.onclick = () => {
      const first = column.digits !== undefined; // numbers: largest first
      order = { column: at, down: order && order.column === at ? !order.down : first };
      draw();
    };
  });
  const body = make("tbody", "", grid);
  for (const at of sorted(table.rows)) {
    const row = make("tr", "", body);
    const id = table.ids[at];
    row.tabIndex = 0;
    row.dataset.id = id;
    if (id === selected) row.classList.add("selected");
    table.columns.forEach((column, c) => {
      const cell = make("td", shown(table.rows[at][c], column), row);
      if (column.digits !== undefined) cell.classList.add("number");
      else if (column.wrap) cell.classList.add("wrap");
      else cell.title = cell.textContent;
    });
    const pick = () => {
      selected = id;
      body.querySelectorAll(".selected").forEach((other) => other.classList.remove("selected"));
      row.classList.add("selected");
      trigger("pick", { value: id });
    };
    row.onclick = pick;
    row.onkeydown = (event) => {
      if (event.key === "Enter") pick();
    };
  }
  box.scrollTop = top;
}

watch("value", draw);
draw();
