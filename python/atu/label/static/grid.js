// A grid of samples of which only the visible rows are in the page, so that 100,000 scroll as 100 do.

const GAP = 6;
const SIZES = [72, 104, 168]; // least width of a cell, by zoom
const SPARE = 2; // rows beyond what is visible
const NAMES = { n: "unwanted", g: "good", u: "unsure", ".": "not marked" };

export class Grid extends EventTarget {
  proposed = new Set(); // indices that an oracle would mark unwanted
  length = 0;
  cursor = 0;
  #anchor = 0;
  #at = (position) => position;
  #pictures = () => [];
  #rows = new Map(); // row -> element
  #zoom = 1;
  #columns = 1;
  #cell = 0;
  #height = 0; // of a row with its gap
  #frame = 0;

  constructor(element, server) {
    super();
    this.element = element;
    this.server = server;
    this.body = document.createElement("div");
    this.body.className = "rows";
    this.body.setAttribute("role", "rowgroup");
    element.append(this.body);
    element.addEventListener("scroll", () => this.#soon(), { passive: true });
    element.addEventListener("click", (event) => this.#click(event));
    new ResizeObserver(() => this.layout()).observe(element);
  }

  // Show `length` samples: at(position) is a sample's index, pictures(index) the addresses of its one or two pictures.
  show(length, at, pictures, pair = false) {
    Object.assign(this, { length, pair });
    this.#at = at;
    this.#pictures = pictures;
    this.cursor = this.#anchor = 0;
    this.element.scrollTop = 0;
    this.layout();
  }

  get zoom() {
    return this.#zoom;
  }

  set zoom(zoom) {
    this.#zoom = zoom;
    this.layout();
    this.#reveal();
  }

  index(position) {
    return this.#at(position);
  }

  // The chosen samples' indices: the range, or the one under the cursor.
  chosen() {
    const [first, last] = this.#range();
    return this.length ? Array.from({ length: last - first + 1 }, (_, k) => this.#at(first + k)) : [];
  }

  // The indices of the samples on the page that is in view.
  inView() {
    const [first, last] = this.#visible();
    const from = Math.min(first * this.#columns, this.length);
    const to = Math.min((last + 1) * this.#columns, this.length);
    return Array.from({ length: to - from }, (_, k) => this.#at(from + k));
  }

  move(key, extend) {
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.#columns, ArrowDown: this.#columns }[key];
    const ends = { Home: 0, End: this.length - 1 };
    this.go(step === undefined ? ends[key] : this.cursor + step, extend);
  }

  go(position, extend = false) {
    if (!this.length) return;
    this.cursor = Math.max(0, Math.min(position, this.length - 1));
    if (!extend) this.#anchor = this.cursor;
    this.#reveal();
    this.refresh();
  }

  // One page on; false at the end.
  nextPage() {
    const [first, last] = this.#visible();
    const rows = Math.max(last - first + 1, 1);
    const to = (first + rows) * this.#columns;
    if (to >= this.length) return false;
    this.element.scrollTop = (first + rows) * this.#height;
    this.cursor = this.#anchor = to;
    this.#draw();
    this.refresh();
    return true;
  }

  layout() {
    const width = this.element.clientWidth - 8; // its padding
    if (width <= 0) return;
    const top = Math.floor(this.element.scrollTop / (this.#height || 1)) * this.#columns;
    const size = SIZES[this.#zoom] * (this.pair ? 2 : 1);
    this.#columns = Math.max(Math.floor((width + GAP) / (size + GAP)), this.pair ? 1 : 2);
    this.#cell = (width - GAP * (this.#columns - 1)) / this.#columns;
    this.#height = (this.pair ? this.#cell / 2 : this.#cell) + GAP;
    const rows = Math.ceil(this.length / this.#columns);
    this.body.style.height = `${Math.max(rows * this.#height - GAP, 0)}px`;
    this.element.setAttribute("aria-rowcount", rows);
    this.element.setAttribute("aria-colcount", this.#columns);
    this.body.replaceChildren();
    this.#rows.clear();
    this.element.scrollTop = Math.floor(top / this.#columns) * this.#height;
    this.#draw();
  }

  // Bring the marks and the cursor of the cells that are there up to date.
  refresh() {
    for (const row of this.#rows.values()) for (const cell of row.children) this.#paint(cell);
    const active = document.getElementById(`cell-${this.cursor}`);
    if (active) this.element.setAttribute("aria-activedescendant", active.id);
    else this.element.removeAttribute("aria-activedescendant");
  }

  #range() {
    return [Math.min(this.#anchor, this.cursor), Math.max(this.#anchor, this.cursor)];
  }

  // First and last row that are wholly in view (at least one).
  #visible() {
    const first = Math.ceil((this.element.scrollTop - 4) / this.#height);
    const last = Math.floor((this.element.scrollTop + this.element.clientHeight + GAP) / this.#height) - 1;
    return [first, Math.max(last, first)];
  }

  #reveal() {
    const top = Math.floor(this.cursor / this.#columns) * this.#height;
    const height = this.element.clientHeight - 8;
    if (top < this.element.scrollTop) this.element.scrollTop = top;
    else if (top + this.#height > this.element.scrollTop + height)
      this.element.scrollTop = top + this.#height - height;
    this.#draw();
  }

  #soon() {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.#draw();
    });
  }

  #draw() {
    if (!this.#height) return;
    const rows = Math.ceil(this.length / this.#columns);
    const first = Math.max(Math.floor(this.element.scrollTop / this.#height) - SPARE, 0);
    const last = Math.min(
      Math.ceil((this.element.scrollTop + this.element.clientHeight) / this.#height) + SPARE, rows - 1);
    for (const [row, element] of this.#rows) {
      if (row < first || row > last) {
        for (const image of element.querySelectorAll("img")) image.removeAttribute("src"); // stops its loading
        element.remove();
        this.#rows.delete(row);
      }
    }
    for (let row = first; row <= last; row++) if (!this.#rows.has(row)) this.#addRow(row);
    this.refresh();
  }

  #addRow(row) {
    const element = document.createElement("div");
    element.className = "row";
    element.setAttribute("role", "row");
    element.setAttribute("aria-rowindex", row + 1);
    element.style.transform = `translateY(${row * this.#height}px)`;
    const end = Math.min((row + 1) * this.#columns, this.length);
    for (let position = row * this.#columns; position < end; position++) element.append(this.#makeCell(position));
    this.#rows.set(row, element);
    const later = [...this.#rows.keys()].filter((key) => key > row).sort((a, b) => a - b)[0];
    this.body.insertBefore(element, later === undefined ? null : this.#rows.get(later));
  }

  #makeCell(position) {
    const cell = document.createElement("div");
    cell.id = `cell-${position}`;
    cell.dataset.position = position;
    cell.setAttribute("role", "gridcell");
    cell.setAttribute("aria-colindex", (position % this.#columns) + 1);
    cell.style.width = `${this.#cell}px`;
    cell.style.height = `${this.#height - GAP}px`;
    for (const address of this.#pictures(this.#at(position))) cell.append(picture(address));
    const badge = document.createElement("span");
    badge.className = "badge";
    badge.setAttribute("aria-hidden", "true");
    cell.append(badge);
    return cell;
  }

  #paint(cell) {
    const position = Number(cell.dataset.position);
    const index = this.#at(position);
    const code = this.server.code(index);
    const [first, last] = this.#range();
    const chosen = last > first && position >= first && position <= last;
    const classes = ["cell"];
    if (this.pair) classes.push("pair");
    const proposed = code === "." && this.proposed.has(index);
    if (proposed) classes.push("proposed");
    if (code !== ".") classes.push(code);
    if (!this.server.saved(index)) classes.push("pending");
    if (chosen) classes.push("chosen");
    if (position === this.cursor) classes.push("active");
    const name = classes.join(" ");
    if (cell.className === name) return;
    cell.className = name;
    cell.setAttribute("aria-selected", chosen || position === this.cursor);
    const name_of = index < 0 ? `${-index} to judge` : index;
    cell.setAttribute("aria-label", `Sample ${name_of}, ${proposed ? "proposed as unwanted" : NAMES[code]}`);
  }

  #click(event) {
    const cell = event.target.closest(".cell");
    if (!cell) return;
    this.go(Number(cell.dataset.position), event.shiftKey);
    this.dispatchEvent(new CustomEvent("pick", { detail: { range: event.shiftKey } }));
  }
}

function picture(address) {
  const image = document.createElement("img");
  image.alt = "";
  image.decoding = "async";
  image.draggable = false;
  image.addEventListener("load", () => {
    image.classList.add("there");
    image.classList.toggle("small", image.naturalWidth <= 64);
  });
  image.addEventListener("error", () => {
    setTimeout(() => image.isConnected && (image.src = address), 1500);
  });
  image.src = address;
  return image;
}
