// The detail view of a row: reason, findings, curves, uncertainty, settings, records and the command to rerun it.

const ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_";
const CODES = Object.fromEntries([...ALPHABET].map((sign, value) => [sign, value]));

function decoded(curve) {
  if (!curve) return null;
  const [low, high, text] = curve, values = [];
  for (let i = 0; i < text.length; i += 2) {
    values.push(text[i] === "." ? null : low + ((high - low) * (64 * CODES[text[i]] + CODES[text[i + 1]])) / 4095);
  }
  return values;
}

// Return the curves of a row, one per seed, or per fold of a seed: {seed, epochs, loss, validation, chosen}.
function curvesOf(row) {
  return row.curves.map((curve, i) => curve && {
    seed: row.records[i][0],
    epochs: DATA.epochs[curve[0]],
    loss: decoded(curve[1]),
    validation: decoded(curve[2]),
    chosen: row.records[i][4],
  }).filter(Boolean);
}

function detailRow(block, row, width) {
  return `<tr class="detail"><td colspan="${width}"><div class="inside">${detailHtml(block, row)}</div></td></tr>`;
}

function detailHtml(block, row) {
  const parts = [];
  if (row.reason) parts.push(`<p class="reason">${plain(row.reason)}</p>`);
  if (row.findings.length) parts.push(`<ul>${row.findings.map(place => `<li>${linked(block.findings[place][2])}</li>`).join("")}</ul>`);
  const curves = curvesOf(row);
  if (curves.length) {
    const behind = row.baseline ? curvesOf(row.baseline) : [];
    parts.push(`<div class="charts">${learning("training loss", row, curves, [], "loss")}${learning(`validation ${block.selected}, percent`, row, curves, behind, "validation")}</div>`);
    const named = curves.length <= MOST_NAMED ? ", labelled at its end" : "", chosen = curves.some(curve => curve.chosen);
    parts.push(`<p class="key">One line per ${row.n < curves.length ? "fold of a seed" : "seed"}${named}${chosen ? "; dots: chosen checkpoints" : ""}${behind.length ? "; grey: the same loss without Metrix" : ""}.</p>`);
  }
  parts.push(publishedOf(block, row), uncertainty(block, row), definitions("Settings", DATA.settings[row.settings]));
  if (row.records.length) {
    parts.push(recordsTable(block, row), commandHtml(row));
    for (const place of new Set(row.records.map(record => record[6]))) parts.push(definitions("Provenance", DATA.provenance[place]));
  }
  return parts.join("");
}

function definitions(title, pairs) {
  if (!pairs || !pairs.length) return "";
  return `<h3>${title}</h3><dl>${pairs.map(([name, value]) => `<div><dt>${plain(name)}</dt><dd>${plain(value)}</dd></div>`).join("")}</dl>`;
}

// List the published scores of this arm. No difference is computed.
function publishedOf(block, row) {
  const publishedForArm = block.published.filter(([arm]) => arm === row.arm);
  const lines = publishedForArm.map(([, , source, values]) => [source, block.metrics.map((name, place) => (values[place] == null ? "" : `${name} ${values[place].toFixed(1)}`)).filter(Boolean).join(", ")]);
  if (row.inflation) lines.push([`best test epoch minus reported epoch, ${block.metrics[0]}`, row.inflation]);
  return definitions("Published elsewhere, under other protocols", lines);
}

function uncertainty(block, row) {
  const lines = block.metrics.map((name, place) => {
    const cell = row.cells[place], digits = block.digits[place];
    if (!cell || (cell.half == null && cell.classes == null)) return "";
    const half = value => (value == null ? "" : "± " + value.toFixed(digits));
    const p = cell.p == null ? "" : cell.p < 0.001 ? "&lt; 0.001" : cell.p.toPrecision(2);
    const rank = cell.rank ? `${cell.rank[0]} (${cell.rank[1]}–${cell.rank[2]})` : "";
    return `<tr><td>${plain(name)}</td><td class="r">${cell.mean.toFixed(digits)}</td><td class="r">${half(cell.half)}</td><td class="r">${cell.bootstrap ? cell.bootstrap.map(end => end.toFixed(digits)).join(" – ") : ""}</td><td class="r">${half(cell.classes)}</td><td class="r">${half(cell.both)}</td><td class="r">${p}</td><td class="r">${rank}</td></tr>`;
  }).join("");
  if (!lines) return "";
  return `<h3>Uncertainty</h3><div class="scroll"><table class="seeds"><thead><tr><th>metric</th><th class="r">mean</th><th class="r">seeds (t)</th><th class="r">seeds (bootstrap)</th><th class="r">test classes</th><th class="r">seeds and classes</th><th class="r">p to baseline, Holm</th><th class="r">rank</th></tr></thead><tbody>${lines}</tbody></table></div>`;
}

function recordsTable(block, row) {
  const heads = block.metrics.map(name => `<th class="r">${plain(name)}</th>`).join("");
  const lines = row.records.map(([seed, end, scores, validation, epoch, seconds]) => {
    const cells = scores.map(score => `<td class="r">${score == null ? "" : score.toFixed(2)}</td>`).join("");
    return `<tr><td>${seed}</td>${cells}<td class="r">${validation == null ? "" : validation.toFixed(1)}</td><td class="r">${epoch || ""}</td><td class="r">${seconds == null ? "" : duration(seconds)}</td><td><code>${plain(row.prefix + end)}</code></td></tr>`;
  }).join("");
  return `<h3>Records</h3><div class="scroll"><table class="seeds"><thead><tr><th>seed</th>${heads}<th class="r">val. ${plain(block.selected)}</th><th class="r">epoch</th><th class="r">training</th><th>record</th></tr></thead><tbody>${lines}</tbody></table></div>`;
}

function commandHtml(row) {
  const [words, known] = row.command;
  const text = `${words} ${row.records[0][0]}`;
  const title = known ? "Run it again" : "Run it again (the grid does not ship with metrix-bench, or these settings cannot be passed to it: compare them)";
  return `<h3>${title}</h3><div class="command"><code>${plain(text)}</code><button type="button" class="tool copy">copy</button></div>`;
}

function duration(seconds) {
  if (seconds < 99.5) return seconds < 9.95 ? `${seconds.toFixed(1)} s` : `${seconds.toFixed(0)} s`;
  return seconds < 5970 ? `${(seconds / 60).toFixed(1)} min` : `${(seconds / 3600).toFixed(1)} h`;
}
