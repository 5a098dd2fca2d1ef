// The tables: one per block, drawn when it comes near the viewport, with its rows in portions.

const PORTION = 80;
const COSTS = [["time", "time"], ["passes", "passes"], ["peak", "peak GB"], ["n", "n"]];
const opened = new Set();
const sections = [];

function scaleOf(block, place) {
  const cells = block.rows.filter(row => !row.floor && row.cells[place]).map(row => row.cells[place]);
  const ends = cells.flatMap(cell => [cell.mean - (cell.half || 0), cell.mean + (cell.half || 0)]);
  const spans = cells.filter(cell => cell.difference != null).map(cell => Math.abs(cell.difference) + (cell.differenceHalf || 0));
  const low = Math.min(...ends), high = Math.max(...ends), room = 0.05 * (high - low) || 1;
  return { low: low - room, high: high + room, span: Math.max(0, ...spans) || 1 };
}

function bar(at, low, high, reference) {
  const place = share => `${(100 * share).toFixed(1)}%`;
  const ref = reference === null ? "" : `<i class="ref" style="left:${place(reference)}"></i>`;
  const reach = low === null ? "" : `<i class="reach" style="left:${place(low)};width:${place(high - low)}"></i>`;
  return `<span class="scale" aria-hidden="true">${ref}${reach}<b style="left:${place(at)}"></b></span>`;
}

function scoreCell(block, row, place, scale) {
  const cell = row.cells[place], digits = block.digits[place];
  if (!cell) return '<td class="r"></td><td class="r"></td>';
  const at = value => (value - scale.low) / (scale.high - scale.low);
  const position = value => 0.5 + (0.5 * value) / scale.span;
  const base = row.baseline && row.baseline.cells[place];
  const marks = cell.marks || "";
  const classes = `r${marks.includes("b") ? " best" : ""}${marks.includes("s") ? " second" : ""}`;
  const half = cell.half == null ? "" : `±\u2009${cell.half.toFixed(digits)}`;
  const inside = cell.mean >= scale.low && cell.mean <= scale.high;
  const drawn = inside ? bar(at(cell.mean), half ? at(cell.mean - cell.half) : null, half ? at(cell.mean + cell.half) : null, base ? at(base.mean) : null) : "";
  let html = `<td class="${classes}"><span class="num">${cell.mean.toFixed(digits)}</span><span class="half">${half}</span>${drawn}</td>`;
  if (cell.difference == null) return html + '<td class="r"></td>';
  const reach = cell.differenceHalf;
  const dagger = `<span class="dagger">${marks.includes("d") ? "†" : ""}</span>`;
  const ends = reach == null ? [null, null] : [position(cell.difference - reach), position(cell.difference + reach)];
  html += `<td class="r delta"><span class="num">${signed(cell.difference, digits)}</span>`;
  html += `<span class="half">${reach == null ? "" : "±\u2009" + reach.toFixed(digits)}</span>${dagger}`;
  return html + bar(position(cell.difference), ...ends, 0.5) + "</td>";
}

// Return a rule as a link to its explanation. Notes that trials recorded themselves are labelled "note".
function ruleHtml(rule, look) {
  return find(rule) ? `<a class="rule ${look}" href="#${rule}">${rule}</a>` : `<span class="${look}">${plain(rule) || "note"}</span>`;
}

const linked = sentence => typeset(sentence).replace(/^FAIR-\d\d/, rule => ruleHtml(rule, ""));

function nameCell(block, row, under) {
  const label = row.indent && under ? row.name : row.full;
  const marks = row.findings.map(place => block.findings[place]);
  const rules = [...new Map(marks.map(mark => [mark[0], mark])).values()];
  const chips = rules.map(([rule, severity]) => ruleHtml(rule, `mark ${severity}`)).join("");
  const open = opened.has(`${block.number}/${row.place}`);
  return `<td class="name"><button type="button" aria-expanded="${open}"><span class="fold" aria-hidden="true">▶</span><span class="label">${breakable(label)}${row.below}</span></button>${chips && `<span class="marks">${chips}</span>`}</td>`;
}

function rowHtml(block, row, metrics, scales, under, edge) {
  const classes = ["row", row.indent ? "indent" : "first", row.floor ? "floor" : "", edge ? "edge" : ""].join(" ");
  const width = metrics.length * 2 + 2 + COSTS.length;
  const key = `${block.number}/${row.place}`;
  let html = `<tr class="${classes}" data-key="${key}">${nameCell(block, row, under)}`;
  const short = row.state === "partial" || row.state === "fail" ? "short-of" : "cost";
  const seeds = `<td class="r ${short}">${plain(row.seeds)}</td>`;
  if (row.cells.some(Boolean)) {
    html += metrics.map((place, i) => scoreCell(block, row, place, scales[i])).join("");
    const rank = row.cells[metrics[0]] && row.cells[metrics[0]].rank;
    html += `<td class="r">${rank ? `${rank[0]}<span class="half">${rank[1]}–${rank[2]}</span>` : ""}</td>`;
    html += `<td class="r cost">${plain(row.timed)}</td><td class="r cost">${plain(row.passed)}</td>`;
    html += `<td class="r cost">${row.peak && !row.floor ? row.peak.toFixed(1) : ""}</td>${seeds}`;
  } else {
    const word = { fail: "fail", "n/a": "n/a" }[row.state] || "--";
    html += `<td colspan="${width - 2}"><span class="state${row.state === "fail" ? "" : " none"}">${word}</span>`;
    html += `<span class="why">${plain(row.reason)}</span></td>${seeds}`;
  }
  html += "</tr>";
  return opened.has(key) ? html + detailRow(block, row, width) : html;
}

function publishedRows(block, metrics) {
  if (state.words.length || state.sort || state.clean) return "";
  const lossSelected = name => !state.loss.size || state.loss.has(name);
  return block.published.filter(row => lossSelected(row[0].split("+")[0])).map(([arm, short, source, values], place) => {
    const cells = metrics.map(m => `<td class="r">${values[m] == null ? "" : values[m].toFixed(1)}<span class="half"></span></td><td></td>`);
    const blank = "<td></td>".repeat(1 + COSTS.length);
    return `<tr class="published${place ? "" : " edge"}"><td class="name" title="${plain(source)}">${breakable(arm)} <span class="source">${plain(short)}</span></td>${cells.join("")}${blank}</tr>`;
  }).join("");
}

function headHtml(block, metrics) {
  const columns = [["method", "method", ""]];
  for (const place of metrics) {
    const name = block.metrics[place];
    columns.push([name, name, "r"], [name + "|d", "Δ " + name, "r"]);
  }
  columns.push([block.metrics[metrics[0]] + "|r", "rank", "r"], ...COSTS.map(([key, title]) => [key, title, "r"]));
  const cells = columns.map(([key, title, side]) => {
    const sorted = state.sort === key ? ` aria-sort="${state.order}"` : "";
    return `<th class="${side || "name"}" scope="col"${sorted}><button type="button" data-sort="${plain(key)}">${plain(title)}</button></th>`;
  });
  return `<thead><tr>${cells.join("")}</tr></thead>`;
}

function rowsHtml(block, rows, from, to) {
  const metrics = shownMetrics(block);
  const scales = metrics.map(place => scaleOf(block, place));
  const visible = new Set(rows);
  return rows.slice(from, to).map((row, i) => {
    const before = rows[from + i - 1];
    const edge = !state.sort && row.floor && before && !before.floor;
    return rowHtml(block, row, metrics, scales, !state.sort && visible.has(row.baseline), edge);
  }).join("");
}

function tableHtml(block, rows, to) {
  const metrics = shownMetrics(block);
  const rest = rows.length - to;
  const foot = rest > 0 ? `<tr><td colspan="${metrics.length * 2 + 2 + COSTS.length}"><button type="button" class="more">${rest} more rows</button></td></tr>` : publishedRows(block, metrics);
  return `<table class="board${state.sort ? " sorted" : ""}">${headHtml(block, metrics)}<tbody>${rowsHtml(block, rows, 0, to)}</tbody><tfoot>${foot}</tfoot></table>`;
}

function sectionHtml(block) {
  const labels = [`protocol ${block.protocol}`, block.unlike].filter(Boolean).join(", ");
  const chip = `<span class="chip${block.fair ? "" : " unfair"}">${plain(labels)}</span>${block.marks.map(rule => ruleHtml(rule, "chip unfair")).join("")}`;
  const notes = block.footnotes.map(note => `<li${note.startsWith("FAIR") ? ' class="fair"' : ""}>${linked(note)}</li>`);
  return `<h2>${plain(block.heading)}${chip}</h2><p class="swipe" hidden>Scroll the table sideways for more columns →</p><div class="card scroll" tabindex="0"></div>`
    + `<details class="figures"${DATA.blocks.length < 7 ? " open" : ""}><summary>Figures</summary><div></div></details>`
    + (galleryOf(block) ? '<details class="gallery"><summary>What it retrieves</summary><div></div></details>' : "")
    + (notes.length ? `<ul class="notes">${notes.join("")}</ul>` : "")
    + `<p class="fine">${typeset(block.caption.join(" "))}</p>`;
}

function draw(section) {
  const { block, element } = section;
  if (!element.firstChild) {
    element.innerHTML = sectionHtml(block);
    element.style.minHeight = "";
    element.querySelectorAll("details").forEach(one => one.addEventListener("toggle", () => drawInside(section)));
  }
  section.to = Math.min(Math.max(section.to || 0, PORTION), section.rows.length);
  element.querySelector(".card").innerHTML = tableHtml(block, section.rows, section.to);
  hint(section);
  section.fresh = true;
  section.drawn = false;
  if (section.inside) drawInside(section);
}

// Show the hint to scroll sideways if the table is wider than its card.
function hint({ element }) {
  const card = element.querySelector(".card");
  if (card) element.querySelector(".swipe").hidden = card.scrollWidth <= card.clientWidth;
}

// Draw figures and galleries when they are open and in view, and again when their rows have changed.
function drawInside(section) {
  if (section.drawn || !section.fresh) return;
  section.drawn = true;
  const [figures, gallery] = ["figures", "gallery"].map(name => section.element.querySelector(`details.${name}[open] > div`));
  if (figures) figures.innerHTML = figuresHtml(section.block, section.rows);
  if (gallery) gallery.innerHTML = galleryHtml(section.block, section.rows);
  if (section.element.querySelectorAll("details[open] > div").length < section.element.querySelectorAll("details").length) section.drawn = false;
}

function more(section, to) {
  const from = section.to;
  section.to = Math.min(to, section.rows.length);
  const body = section.element.querySelector("tbody");
  body.insertAdjacentHTML("beforeend", rowsHtml(section.block, section.rows, from, section.to));
  const rest = section.rows.length - section.to;
  const metrics = shownMetrics(section.block);
  section.element.querySelector("tfoot").innerHTML = rest > 0 ? `<tr><td><button type="button" class="more">${rest} more rows</button></td></tr>` : publishedRows(section.block, metrics);
}
