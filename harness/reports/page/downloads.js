// Downloads of what is shown: the filtered rows in their current order, with the printed metrics.

const COLUMNS = ["dataset", "backbone", "heading", "protocol", "arm", "baseline", "level", "metric", "state", "reason", "findings", "n", "mean", "half", "difference", "difference_half", "adjusted_p", "best", "second", "significant", "rank", "rank_low", "rank_high", "train_s", "forward_passes_per_step", "peak_gb", "records"];

function shownLines() {
  return sections.filter(section => section.rows.length).flatMap(({ block, rows }) => rows.flatMap(row => shownMetrics(block).map(place => {
    const cell = row.cells[place] || {}, marks = cell.marks || "", rank = cell.rank || [];
    return {
      dataset: block.dataset, backbone: block.backbone, heading: block.heading, protocol: block.protocol, arm: row.arm,
      baseline: row.indent ? row.loss : "", level: row.level, metric: block.metrics[place], state: row.state, reason: row.reason, findings: row.findings.map(note => block.findings[note][2]).join(" "), n: row.n,
      mean: cell.mean, half: cell.half, difference: cell.difference, difference_half: cell.differenceHalf, adjusted_p: cell.p,
      best: marks.includes("b"), second: marks.includes("s"), significant: marks.includes("d"), rank: rank[0], rank_low: rank[1], rank_high: rank[2],
      train_s: row.time, forward_passes_per_step: row.passes, peak_gb: row.peak, records: row.records.map(record => row.prefix + record[1]).join(" "),
    };
  })));
}

function asCsv() {
  const field = value => {
    const text = value === null || value === undefined ? "" : String(value);
    return /[",\n]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
  };
  return [COLUMNS.join(","), ...shownLines().map(line => COLUMNS.map(name => field(line[name])).join(","))].join("\n") + "\n";
}

function asJson() {
  const lines = shownLines().map(line => Object.fromEntries(COLUMNS.map(name => [name, line[name] === undefined ? null : line[name]])));
  return JSON.stringify({ title: DATA.title, progress: DATA.progress, unit: "percent", caption: DATA.caption, filters: location.hash.slice(1), rows: lines }, null, 1) + "\n";
}

const LATEX = { "$": "$\\$$", "\\": "\\textbackslash{}", "~": "\\~{}", "^": "\\^{}", "<": "\\textless{}", ">": "\\textgreater{}", "|": "\\textbar{}", "±": "$\\pm$", "×": "$\\times$", "−": "$-$", "Δ": "$\\Delta$", "·": "$\\cdot$", "†": "$^\\dagger$", "‡": "$^\\ddagger$", "–": "--" };
const latex = text => String(text).replace(/[&%#_{}]/g, "\\$&").replace(/\\(?![&%#_{}])|[$~^<>|±×−Δ·†‡–]/g, sign => LATEX[sign] || sign);

// Return the caption without the sentences on marks and rows that this table does not show.
function captionOf(rows, metrics) {
  const marks = rows.flatMap(row => metrics.map(place => (row.cells[place] && row.cells[place].marks) || "")).join("");
  const shown = {
    "Grey": false, "Bold": marks.includes("b"), "Underlined": marks.includes("s"), "†": marks.includes("d"), "‡": rows.some(row => row.below),
    "untrained": rows.some(row => row.arm === "untrained"), "pixels": rows.some(row => row.arm === "pixels"), "Training time (seconds inside training steps) and forward passes per step": false,
  };
  return DATA.caption.filter(sentence => shown[sentence.split(":")[0]] !== false);
}

function asLatex() {
  const tables = sections.filter(section => section.rows.length).map(({ block, rows }) => {
    const metrics = shownMetrics(block);
    const heads = metrics.map(place => `\\multicolumn{2}{c}{${latex(block.metrics[place])}} & {\\scriptsize $\\Delta$}`);
    const body = rows.map(row => {
      const cells = metrics.map(place => {
        const cell = row.cells[place], digits = block.digits[place];
        if (!cell) return `${latex({ fail: "fail", "n/a": "n/a" }[row.state] || "--")} & & `;
        const marks = cell.marks || "";
        let mean = cell.mean.toFixed(digits);
        if (marks.includes("s")) mean = `\\underline{${mean}}`;
        if (marks.includes("b")) mean = `{\\bfseries ${mean}}`;
        const half = cell.half == null ? "" : `{\\scriptsize $\\pm$\\,${cell.half.toFixed(digits)}}`;
        const difference = cell.difference == null ? "" : `{\\scriptsize ${latex(signed(cell.difference, digits))}${marks.includes("d") ? "\\rlap{$^\\dagger$}" : ""}}`;
        return `${mean} & ${half} & ${difference}`;
      });
      const name = (row.indent && !state.sort ? "\\quad " : "") + latex((state.sort && row.indent ? row.arm : row.title) + row.below);
      return `    ${name} & ${cells.join(" & ")} & ${latex(row.seeds)} \\\\`;
    });
    const columns = metrics.map(() => "r@{\\,}l@{\\enspace}r@{\\quad}").join("");
    return [`\\begin{table}[tp]`, "  \\centering\\footnotesize\\setlength{\\tabcolsep}{4pt}", `  \\caption{${latex([block.heading + ".", ...captionOf(rows, metrics)].join(" "))}}`, `  \\begin{tabular}{@{}l${columns}r@{}}`, "    \\toprule", `    & ${heads.join(" & ")} & $n$ \\\\`, "    \\midrule", ...body, "    \\bottomrule", "  \\end{tabular}", "\\end{table}"].join("\n");
  });
  return `% ${DATA.title.replace(/\s+/g, " ")}: ${location.hash ? "filtered by " + location.hash.slice(1) : "all rows"}. Needs \\usepackage{booktabs}.\n\n${tables.join("\n\n")}\n`;
}

const FORMATS = { csv: [asCsv, "text/csv"], json: [asJson, "application/json"], latex: [asLatex, "text/x-tex"] };

function download(format) {
  const [make, type] = FORMATS[format];
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([make()], { type }));
  link.download = `leaderboard.${format === "latex" ? "tex" : format}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
