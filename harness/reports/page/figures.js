// Figures of the rows that are shown, as SVG. Colours and shapes are levels. In line figures of several losses, colours
// are losses and dashes are levels.

const WIDE = 460, HIGH = 250, LEFT = 44, RIGHT = 10, TOP = 8, BOTTOM = 34;
const MOST_DRAWN = 60;
const look = row => { const [colour, shape, dash] = DATA.levels[row.level]; return { colour, shape, dash }; };
const colour = row => row.tint || look(row).colour;

const TINTS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#7f7f7f"];

// Return rows with the colour and dash of their line: by loss and level if several losses are drawn, else by level.
function tinted(block, rows) {
  const losses = [...new Set(block.rows.filter(row => !row.floor).map(row => row.loss))];
  if (new Set(rows.map(row => row.loss)).size < 2) return rows.map(row => ({ ...row, dash: "" }));
  const tint = place => (losses.length > TINTS.length ? `hsl(${Math.round((360 * place) / losses.length)} 60% 48%)` : TINTS[place]);
  return rows.map(row => ({ ...row, tint: row.floor ? "" : tint(losses.indexOf(row.loss)), dash: look(row).dash }));
}

const trace = (row, points) => `<polyline class="trace" style="stroke:${colour(row)}" stroke-dasharray="${row.dash}" points="${points}"><title>${plain(row.full)}</title></polyline>`;

// Return the legend of colours and dashes: losses and levels if lines are tinted, else levels.
function lineLegend(rows) {
  const first = [...new Map(rows.filter(row => row.tint).map(row => [row.loss, row])).values()];
  if (!first.length) return legend(rows);
  const key = (style, dash, name) => `<span><svg viewBox="0 0 22 8" style="display:inline-block;width:22px;height:8px;vertical-align:1px;margin-right:4px"><line x1="0" x2="22" y1="4" y2="4" style="stroke:${style}" stroke-width="2" stroke-dasharray="${dash}"/></svg>${plain(name)}</span>`;
  const levels = ORDER.filter(name => rows.some(row => row.level === name));
  return `<p class="legend">${first.map(row => key(colour(row), "", row.loss)).join("")}${levels.map(name => key("var(--ink)", look({ level: name }).dash, name)).join("")}</p>`;
}

function ticks(low, high, most = 5, whole = false) {
  const power = 10 ** Math.floor(Math.log10((high - low) / most));
  const fine = [1, 2, 5, 10].map(factor => factor * power).find(size => (high - low) / size <= most);
  const step = whole ? Math.max(fine, 1) : fine;
  const values = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + 1e-9 * step; n++) values.push(Number((n * step).toPrecision(12)));
  return values;
}

function widened(values, share = 0.06) {
  const low = Math.min(...values), high = Math.max(...values), room = share * (high - low) || 0.5;
  return [low - room, high + room];
}

function figure(title, inside, height = HIGH, more = "") {
  return `<figure><figcaption>${title}</figcaption><svg viewBox="0 0 ${WIDE} ${height}" role="img" aria-label="${title.replace(/<[^>]*>/g, "")}">${inside}</svg>${more}</figure>`;
}

// Return axes with a grid: {x, y, html}. x and y map values to positions. `whole`: x has whole numbers, such as epochs.
function axes([x0, x1], [y0, y1], names, options = {}) {
  const x = value => LEFT + ((WIDE - LEFT - (options.right || RIGHT)) * (value - x0)) / (x1 - x0);
  const y = value => HIGH - BOTTOM - ((HIGH - BOTTOM - TOP) * (value - y0)) / (y1 - y0);
  const number = value => String(value).replace("-", "−");
  let html = ticks(y0, y1).map(v => `<line class="grid" x1="${LEFT}" x2="${WIDE - RIGHT}" y1="${y(v)}" y2="${y(v)}"/><text x="${LEFT - 5}" y="${y(v) + 3.5}" text-anchor="end">${number(v)}</text>`).join("");
  const marks = options.ticks || ticks(x0, x1, 5, options.whole).map(v => [v, number(v)]);
  html += marks.map(([v, text]) => `<text x="${x(v)}" y="${HIGH - BOTTOM + 14}" text-anchor="middle">${plain(text)}</text>`).join("");
  html += `<text x="${(LEFT + WIDE - RIGHT) / 2}" y="${HIGH - 3}" text-anchor="middle">${plain(names[0])}</text>`;
  html += `<text transform="translate(10 ${(HIGH - BOTTOM + TOP) / 2}) rotate(-90)" text-anchor="middle">${plain(names[1])}</text>`;
  return { x, y, html };
}

function dot(x, y, row, title, filled = true) {
  const fill = filled ? colour(row) : "var(--paper)", stroke = filled ? "var(--paper)" : colour(row);
  const style = `style="fill:${fill};stroke:${stroke}" stroke-width="${filled ? 0.8 : 1.6}"`;
  const shape = SHAPES[look(row).shape];
  const [tag, own] = shape ? ["path", `d="${outline(x, y, shape)}"`] : ["circle", `cx="${x}" cy="${y}" r="4"`];
  return `<${tag} ${own} ${style}><title>${plain(title)}</title></${tag}>`;
}

const outline = (x, y, corners) => `M${corners.map(([right, down]) => `${x + right} ${y + down}`).join("L")}Z`;
const polygon = (corners, size, turn = -90) => Array.from({ length: corners }, (_, i) => {
  const angle = ((turn + (360 * i) / corners) * Math.PI) / 180;
  return [size * Math.cos(angle), size * Math.sin(angle)];
});
const plus = (arm, half) => [[-half, -arm], [half, -arm], [half, -half], [arm, -half], [arm, half], [half, half], [half, arm], [-half, arm], [-half, half], [-arm, half], [-arm, -half], [-half, -half]];
const turned = corners => corners.map(([x, y]) => [(x - y) * Math.SQRT1_2, (x + y) * Math.SQRT1_2]);
const SHAPES = {  // corners around the centre; any other shape is a circle
  diamond: polygon(4, 5),
  square: polygon(4, 5.1, -45),
  triangle: polygon(3, 5.2),
  "triangle-down": polygon(3, 5.2, 90),
  "triangle-left": polygon(3, 5.2, 180),
  "triangle-right": polygon(3, 5.2, 0),
  pentagon: polygon(5, 4.8),
  hexagon: polygon(6, 4.7),
  star: polygon(10, 5.4).map(([x, y], i) => (i % 2 ? [0.45 * x, 0.45 * y] : [x, y])),
  plus: plus(4.6, 1.6),
  x: turned(plus(4.9, 1.6)),
  cross: plus(4.2, 0.8),
};

function legend(rows) {
  const levels = ORDER.filter(name => rows.some(row => row.level === name));
  return `<p class="legend">${levels.map(name => `<span><svg viewBox="-6 -6 12 12" style="width:11px;height:11px;display:inline-block;vertical-align:-1px;margin-right:3px">${dot(0, 0, { level: name }, name)}</svg>${name}</span>`).join("")}</p>`;
}

function figuresHtml(block, rows) {
  const place = shownMetrics(block)[0];
  const trained = rows.filter(row => !row.floor && row.cells.some(Boolean)).slice(0, MOST_DRAWN);
  if (!trained.length) return '<p class="key">No measured row is shown.</p>';
  const left = rows.filter(row => !row.floor && row.cells.some(Boolean)).length - trained.length;
  const drawn = [forest, heatMap, costs, recallCurves, validationCurves, validationAgainstTest].map(one => one(block, trained, place));
  return drawn.join("") + (left > 0 ? `<p class="key">Of the first ${MOST_DRAWN} rows; ${left} more are in the table.</p>` : "");
}

function forest(block, rows, place) {
  const drawn = rows.filter(row => row.cells[place] && row.cells[place].difference != null);
  if (!drawn.length) return "";
  const step = 17, left = 168, height = TOP + drawn.length * step + BOTTOM;
  const cells = drawn.map(row => row.cells[place]);
  const [low, high] = widened([0, ...cells.flatMap(c => [c.difference - (c.differenceHalf || 0), c.difference + (c.differenceHalf || 0)])]);
  const x = value => left + ((WIDE - left - RIGHT) * (value - low)) / (high - low);
  let html = ticks(low, high).map(v => `<line class="grid" x1="${x(v)}" x2="${x(v)}" y1="${TOP}" y2="${height - BOTTOM}"/><text x="${x(v)}" y="${height - BOTTOM + 14}" text-anchor="middle">${String(v).replace("-", "−")}</text>`).join("");
  html += `<line class="zero" x1="${x(0)}" x2="${x(0)}" y1="${TOP}" y2="${height - BOTTOM}"/>`;
  drawn.forEach((row, i) => {
    const cell = row.cells[place], y = TOP + (i + 0.5) * step, half = cell.differenceHalf;
    const name = row.full.length > 29 ? row.full.slice(0, 28) + "…" : row.full;
    html += `<text class="strong" x="${left - 8}" y="${y + 3.5}" text-anchor="end">${plain(name)}</text>`;
    if (half != null) html += `<line x1="${x(cell.difference - half)}" x2="${x(cell.difference + half)}" y1="${y}" y2="${y}" style="stroke:${colour(row)}" stroke-width="1.6"/>`;
    html += dot(x(cell.difference), y, row, `${row.full}: ${signed(cell.difference, 2)}${half == null ? "" : " ± " + half.toFixed(2)}`, (cell.marks || "").includes("d"));
  });
  html += `<text x="${(left + WIDE - RIGHT) / 2}" y="${height - 3}" text-anchor="middle">Δ ${plain(block.metrics[place])}, points</text>`;
  const tested = cells.some(cell => cell.p != null), sure = cells.some(cell => cell.differenceHalf != null);
  const filled = cells.some(cell => (cell.marks || "").includes("d")) ? "; filled: significant after Holm" : tested ? "; none significant after Holm" : "";
  return figure(`<b>Level minus baseline</b>, paired by seed${sure ? ", 95 % t-interval" : ""}${filled}`, html, height);
}

// Return the opacity of a difference: pale within its interval or without one, then by its size in half widths.
function depth(cell) {
  const size = Math.abs(cell.difference), half = cell.differenceHalf;
  return half == null || size <= half ? 0.08 : 0.2 + 0.48 * Math.min((size / half - 1) / 3, 1);
}

function heatMap(block, rows, place) {
  const levels = ORDER.filter(name => name !== "floor" && rows.some(row => row.level === name));
  const losses = [...new Set(rows.map(row => row.loss))];
  if (levels.length < 2) return "";
  const pick = (loss, name) => rows.find(row => row.loss === loss && row.level === name && row.cells[place]);
  const sure = rows.some(row => row.cells[place] && row.cells[place].differenceHalf != null);
  const left = 130, width = (WIDE - left - RIGHT) / levels.length, step = 26, slanted = levels.length > 5, head = slanted ? 72 : 20, height = head + losses.length * step + 6;
  const middle = i => left + (i + 0.5) * width;
  let html = levels.map((name, i) => `<text ${slanted ? `transform="translate(${middle(i)} ${head - 6}) rotate(-40)"` : `x="${middle(i)}" y="13" text-anchor="middle"`}>${plain(name)}</text>`).join("");
  losses.forEach((loss, j) => {
    const y = head + j * step, name = loss.length > 22 ? loss.slice(0, 21) + "…" : loss;
    html += `<text class="strong" x="${left - 8}" y="${y + step / 2 + 3.5}" text-anchor="end">${plain(name)}</text>`;
    levels.forEach((name, i) => {
      const row = pick(loss, name), cell = row && row.cells[place];
      const fill = cell && cell.difference != null ? `rgba(var(${cell.difference < 0 ? "--warm" : "--cold"}), ${depth(cell).toFixed(2)})` : "var(--hover)";
      const text = !cell ? "–" : cell.difference == null ? cell.mean.toFixed(block.digits[place]) : signed(cell.difference, block.digits[place]) + ((cell.marks || "").includes("d") ? "†" : "");
      html += `<rect x="${left + i * width + 1}" y="${y + 1}" width="${width - 2}" height="${step - 2}" rx="3" style="fill:${fill}"/><text class="strong" x="${middle(i)}" y="${y + step / 2 + 3.5}" text-anchor="middle">${text}</text>`;
    });
  });
  return figure(`<b>Loss × level</b>: baseline ${plain(block.metrics[place])} in percent, then differences in points; blue gains, orange losses, ${sure ? "pale within the 95 % interval, darkest from four half widths on" : "all pale: too few seeds for an interval"}`, html, height);
}

function costs(block, rows, place) {
  const drawn = rows.filter(row => row.cells[place] && row.time > 0);
  if (drawn.length < 2) return "";
  const least = Math.min(...drawn.map(row => row.time)), unit = least >= 3600 ? [3600, "h"] : least >= 60 ? [60, "min"] : [1, "s"];
  const at = row => row.time / unit[0];
  const mean = row => row.cells[place].mean, half = row => row.cells[place].half || 0;
  const frame = axes(widened(drawn.map(at)), widened(drawn.flatMap(row => [mean(row) - half(row), mean(row) + half(row)])), [`training time, ${unit[1]}`, `${block.metrics[place]}, percent`]);
  const front = [];
  const above = (a, b) => a.cells[place].place - b.cells[place].place;
  for (const row of [...drawn].sort((a, b) => at(a) - at(b) || above(a, b))) if (!front.length || above(row, front[front.length - 1]) < 0) front.push(row);
  let html = frame.html + `<path class="pareto" d="${front.map((row, i) => `${i ? "H" + frame.x(at(row)) + "V" : "M" + frame.x(at(row)) + " "}${frame.y(mean(row))}`).join("")}H${WIDE - RIGHT}"/>`;
  for (const row of drawn) {
    const x = frame.x(at(row));
    if (half(row)) html += `<line x1="${x}" x2="${x}" y1="${frame.y(mean(row) - half(row))}" y2="${frame.y(mean(row) + half(row))}" style="stroke:${colour(row)}" opacity=".5"/>`;
    html += dot(x, frame.y(mean(row)), row, `${row.full}: ${mean(row).toFixed(1)} in ${duration(row.time)}`);
  }
  const written = [];
  for (const row of front.reverse()) {
    const x = frame.x(at(row)), y = frame.y(mean(row)), right = x > WIDE * 0.7;
    if (written.some(([u, v]) => Math.abs(u - x) < 170 && Math.abs(v - y) < 14)) continue;
    written.push([x, y]);
    html += `<text x="${frame.x(at(row)) + (right ? -7 : 7)}" y="${frame.y(mean(row)) - 6}" text-anchor="${right ? "end" : "start"}">${plain(row.full)}</text>`;
  }
  return figure("<b>Score against training cost</b>; dashed: Pareto front", html, HIGH, legend(drawn));
}

function recallCurves(block, rows) {
  const ks = block.metrics.map((name, place) => [/^R@(\d+)$/.exec(name), place]).filter(([match]) => match).map(([match, place]) => [Number(match[1]), place]).sort((a, b) => a[0] - b[0]);
  if (ks.length < 2) return "";
  const lines = tinted(block, rows).map(row => [row, ks.map(([, place]) => row.cells[place] && row.cells[place].mean)]).filter(([, values]) => values.every(value => value != null));
  if (!lines.length) return "";
  const frame = axes([-0.15, ks.length - 0.85], widened(lines.flatMap(([, values]) => values)), ["K", "R@K, percent"], { ticks: ks.map(([k], i) => [i, String(k)]) });
  const html = lines.map(([row, values]) => `${trace(row, values.map((v, i) => `${frame.x(i)},${frame.y(v)}`).join(" "))}${values.map((v, i) => dot(frame.x(i), frame.y(v), row, `${row.full}: R@${ks[i][0]} ${v.toFixed(1)}`)).join("")}`).join("");
  return figure("<b>Recall at K</b>", frame.html + html, HIGH, lineLegend(lines.map(([row]) => row)));
}

// Return the mean over seeds at every epoch that all seeds have.
function meanCurve(row) {
  const curves = curvesOf(row).filter(curve => curve.validation);
  if (!curves.length) return null;
  const points = [];
  for (const epoch of curves[0].epochs) {
    const values = curves.map(curve => curve.validation[curve.epochs.indexOf(epoch)]).filter(value => value != null);
    if (values.length === curves.length) points.push([epoch, values.reduce((a, b) => a + b) / values.length]);
  }
  return points;
}

function validationCurves(block, rows) {
  const lines = tinted(block, rows).map(row => [row, meanCurve(row)]).filter(([, points]) => points && points.length > 1);
  if (!lines.length) return "";
  const all = lines.flatMap(([, points]) => points);
  const epochs = all.map(p => p[0]);
  const frame = axes([Math.min(...epochs), Math.max(...epochs)], widened(all.map(p => p[1])), ["epoch", `validation ${block.selected}, percent`], { whole: true });
  const html = lines.map(([row, points]) => trace(row, points.map(([e, v]) => `${frame.x(e).toFixed(1)},${frame.y(v).toFixed(1)}`).join(" "))).join("");
  return figure("<b>Learning curves</b>, mean over seeds", frame.html + html, HIGH, lineLegend(lines.map(([row]) => row)));
}

function validationAgainstTest(block, rows) {
  const place = block.metrics.indexOf(block.selected);
  if (place < 0) return "";
  const points = rows.flatMap(row => row.records.map(record => [row, record[3], record[2][place], record[0]])).filter(([, v, t]) => v != null && t != null);
  if (points.length < 3) return "";
  const frame = axes(widened(points.map(p => p[1])), widened(points.map(p => p[2])), [`validation ${block.selected}, percent`, `test ${block.selected}, percent`]);
  const html = points.map(([row, v, t, seed]) => dot(frame.x(v), frame.y(t), row, `${row.full} seed ${seed}: validation ${v.toFixed(1)}, test ${t.toFixed(1)}`)).join("");
  return figure(`<b>Validation against test</b>, one point per run; correlation ${correlation(points.map(p => p[1]), points.map(p => p[2]))}`, frame.html + html, HIGH, legend(rows));
}

function correlation(a, b) {
  const mean = values => values.reduce((x, y) => x + y) / values.length, ma = mean(a), mb = mean(b);
  const both = a.reduce((sum, x, i) => sum + (x - ma) * (b[i] - mb), 0);
  const size = Math.sqrt(a.reduce((sum, x) => sum + (x - ma) ** 2, 0) * b.reduce((sum, x) => sum + (x - mb) ** 2, 0));
  return size ? (both / size).toFixed(2).replace("-", "−") : "–";
}

const MOST_NAMED = 12;

// Return label heights without overlaps: each at least `least` below the one above it, none below `end`.
function apart(heights, least, end) {
  const order = heights.map((_, i) => i).sort((a, b) => heights[a] - heights[b]), spaced = [...heights];
  order.forEach((i, place) => place && (spaced[i] = Math.max(spaced[i], spaced[order[place - 1]] + least)));
  order.reverse().forEach((i, place) => (spaced[i] = Math.min(spaced[i], end - place * least)));
  return spaced;
}

// Draw the curves of the seeds of one row, from light to strong, in front of those of its baseline (`behind`).
function learning(title, row, curves, behind, what) {
  const drawn = curves.filter(curve => curve[what]), before = behind.filter(curve => curve[what]);
  const all = [...drawn, ...before];
  if (!all.length) return "";
  const values = all.flatMap(curve => curve[what]).filter(value => value !== null);
  const first = Math.min(...all.map(curve => curve.epochs[0])), last = Math.max(first + 1, ...all.map(curve => curve.epochs[curve.epochs.length - 1]));
  const named = drawn.length <= MOST_NAMED;
  const frame = axes([first, last], widened(values), ["epoch", ""], { whole: true, right: named ? 46 : RIGHT });
  const path = curve => curve.epochs.map((e, i) => (curve[what][i] === null ? "" : `${frame.x(e).toFixed(1)},${frame.y(curve[what][i]).toFixed(1)}`)).join(" ");
  let html = frame.html + before.map(curve => `<polyline class="behind" points="${path(curve)}"/>`).join("");
  const ends = drawn.map(curve => curve[what].findLastIndex(value => value !== null));
  const heights = apart(drawn.map((curve, i) => frame.y(curve[what][ends[i]])), 10, HIGH - BOTTOM);
  drawn.forEach((curve, i) => {
    const strength = (0.4 + (0.6 * (i + 1)) / drawn.length).toFixed(2), name = `seed ${curve.seed}`;
    html += `<polyline class="trace" style="stroke:${colour(row)};stroke-opacity:${strength}" points="${path(curve)}"><title>${name}</title></polyline>`;
    if (named) html += `<text class="end" x="${(frame.x(curve.epochs[ends[i]]) + 5).toFixed(1)}" y="${(heights[i] + 3.5).toFixed(1)}">${name}</text>`;
    const place = curve.epochs.findIndex((epoch, j) => epoch >= curve.chosen && curve[what][j] !== null);
    if (curve.chosen && place >= 0) html += `<circle cx="${frame.x(curve.epochs[place]).toFixed(1)}" cy="${frame.y(curve[what][place]).toFixed(1)}" r="3" style="fill:var(--ink);stroke:var(--hover)"/>`;
  });
  return figure(plain(title), html);
}
