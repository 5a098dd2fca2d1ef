// Event handling: every event changes the state, and `apply` redraws the page.

function apply() {
  state.words = state.query.toLowerCase().split(/\s+/).filter(Boolean);
  let rows = 0, all = 0;
  for (const section of sections) {
    section.rows = listed(section.block);
    section.to = 0;
    section.fresh = false;
    rows += section.rows.length;
    all += section.block.rows.length;
    section.element.hidden = !section.rows.length;
    if (section.element.hidden && section.element.firstChild) section.element.querySelector(".card").innerHTML = "";
    if (!section.element.firstChild) section.element.style.minHeight = `${200 + 38 * Math.min(section.rows.length, PORTION)}px`;
  }
  for (const section of sections) if (section.near && section.rows.length) draw(section);
  find("count").textContent = rows === all ? `${all} rows` : `${rows} of ${all} rows`;
  find("blocks").classList.toggle("nothing", !rows);
  drawFacets();
  writeAddress();
}

function drawFacets() {
  const counts = {};
  for (const name in FACETS) counts[name] = new Map();
  for (const block of DATA.blocks) for (const row of block.rows) for (const name in FACETS) {
    const value = FACETS[name](block, row);
    counts[name].set(value, (counts[name].get(value) || 0) + 1);
  }
  const parts = Object.keys(FACETS).filter(name => counts[name].size > 1).map(name => facetHtml(name, name, [...counts[name]].sort(byName), state[name]));
  if (METRICS.length > 2) parts.push(facetHtml("metrics", "columns", METRICS.map(name => [name, ""]), state.metrics));
  parts.push(toggleHtml("fair", "fair only", "rows on the standard data, under a protocol that reads the test once, with nothing refused"));
  parts.push(toggleHtml("clean", "unmarked only", "rows that no fairness rule has anything to say of"));
  const open = find("facets").querySelector("details[open]");
  const openFacet = open && open.dataset.facet;
  const scrolled = open && open.lastElementChild.scrollTop, focused = document.activeElement && document.activeElement.value;
  find("facets").innerHTML = parts.join("");
  if (!openFacet) return;
  const again = find("facets").querySelector(`[data-facet="${openFacet}"]`);
  if (again) {
    again.open = true;
    again.lastElementChild.scrollTop = scrolled;
    const box = [...again.querySelectorAll("input")].find(input => input.value === focused);
    if (box) box.focus({ preventScroll: true });
  }
}

const byName = ([a], [b]) => {
  const place = name => (ORDER.includes(name) ? ORDER.indexOf(name) : -1);
  return place(a) - place(b) || String(a).localeCompare(String(b));
};

function facetHtml(name, title, values, chosen) {
  const boxes = values.map(([value, count]) => `<label><input type="checkbox" value="${plain(value)}"${chosen.has(value) ? " checked" : ""}>${plain(value)}<span>${count}</span></label>`);
  return `<details class="facet${chosen.size ? " on" : ""}" data-facet="${name}"><summary>${title}${chosen.size ? ` · ${chosen.size}` : ""}</summary><div>${boxes.join("")}</div></details>`;
}

function toggleHtml(name, title, why) {
  return `<label class="toggle" title="${why}"><input type="checkbox" data-toggle="${name}"${state[name] ? " checked" : ""}>${title}</label>`;
}

function sortBy(key) {
  const first = key === "method" || key.endsWith("|r") || COSTS.some(([name]) => name === key) ? "ascending" : "descending";
  const second = first === "ascending" ? "descending" : "ascending";
  if (state.sort !== key) [state.sort, state.order] = [key, first];
  else if (state.order === first) state.order = second;
  else [state.sort, state.order] = ["", ""];
  apply();
}

function unfold(line) {
  const key = line.dataset.key, [number, place] = key.split("/").map(Number);
  const block = DATA.blocks[number], open = !opened.has(key);
  line.querySelector("button").setAttribute("aria-expanded", open);
  if (open) {
    opened.add(key);
    line.insertAdjacentHTML("afterend", detailRow(block, block.rows[place], line.parentElement.parentElement.tHead.rows[0].cells.length));
  } else {
    opened.delete(key);
    line.nextElementSibling.remove();
  }
}

function clicked(event) {
  const target = event.target;
  const sort = target.closest("[data-sort]");
  if (sort) {
    sortBy(sort.dataset.sort);
    const again = [...document.querySelectorAll("[data-sort]")].find(button => button.dataset.sort === sort.dataset.sort);
    if (again) again.focus({ preventScroll: true });
  } else if (target.closest("a.rule")) {
    event.preventDefault(); // the address keeps what is filtered and sorted
    const rule = find(target.closest("a.rule").hash.slice(1));
    rule.scrollIntoView({ block: "center" });
    rule.focus({ preventScroll: true });
  } else if (target.closest(".copy")) {
    const text = target.previousElementSibling.textContent;
    if (navigator.clipboard) navigator.clipboard.writeText(text).then(() => (target.textContent = "copied"), () => select(target.previousElementSibling));
    else select(target.previousElementSibling);
  } else if (target.closest(".more")) {
    const section = sections.find(one => one.element.contains(target));
    more(section, section.to + 4 * PORTION);
  } else if (target.closest("[data-format]")) download(target.closest("[data-format]").dataset.format);
  else if (target.closest("tr.row")) unfold(target.closest("tr.row"));
  for (const facet of document.querySelectorAll(".facet[open]")) if (!facet.contains(target)) facet.open = false;
}

function select(element) {
  getSelection().selectAllChildren(element);
}

function changed(event) {
  const input = event.target, facet = input.closest("[data-facet]");
  if (facet) {
    const chosen = state[facet.dataset.facet];
    chosen[input.checked ? "add" : "delete"](input.value);
  } else if (input.dataset.toggle) state[input.dataset.toggle] = input.checked;
  else return;
  apply();
}

function pressed(event) {
  const typing = /INPUT|TEXTAREA|SELECT/.test(event.target.tagName);
  if (event.key === "/" && !typing) event.preventDefault(), find("query").focus();
  if (event.key === "Escape") {
    document.querySelectorAll(".facet[open]").forEach(facet => (facet.open = false));
    if (event.target === find("query") && state.query) (find("query").value = state.query = ""), apply();
  }
  const way = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  const here = event.target.closest && event.target.closest("tr.row");
  if (way && here) {
    const lines = [...document.querySelectorAll("tr.row")];
    const next = lines[lines.indexOf(here) + way];
    if (next) event.preventDefault(), next.querySelector("button").focus();
  }
}

function varianceHtml() {
  const variance = DATA.variance;
  if (!variance) return "";
  const sizes = variance.sizes.map(([name, n]) => `${n} ${name}${n > 1 ? (name.endsWith("s") ? "es" : "s") : ""}`).join(", ");
  const lines = variance.shares.filter(([name, share]) => share >= 0.05 || !name).map(([name, share]) => `<tr><td>${plain(name || "higher interactions and chance")}</td><td class="r">${share.toFixed(1)} %</td><td><span class="scale"><i style="width:${share}%"></i></span></td></tr>`);
  const left = variance.left_out.length ? ` Left out, for the grid to be complete: ${variance.left_out.map(plain).join("; ")}.` : "";
  return `<h2>What moves ${plain(variance.metric)}</h2><table><tbody>${lines.join("")}</tbody></table><p class="fine">Share of the variance over the complete grid of ${sizes} (η² of a crossed analysis of variance); interactions below 0.05 % are not listed.${left}</p>`;
}

function theme(name) {
  state.theme = name;
  if (name) document.documentElement.dataset.theme = name;
  else delete document.documentElement.dataset.theme;
}

function begin() {
  readAddress();
  theme(state.theme);
  find("query").value = state.query;
  for (const block of DATA.blocks) {
    const element = document.createElement("section");
    find("blocks").append(element);
    sections.push({ block, element, rows: [], near: sections.length < 2, inside: false });
  }
  const near = new IntersectionObserver(entries => entries.forEach(entry => {
    const section = sections.find(one => one.element === entry.target);
    section.near = section.inside = entry.isIntersecting;
    if (section.near && section.rows.length) section.fresh ? drawInside(section) : draw(section);
  }), { rootMargin: "700px" });
  apply();
  sections.forEach(section => near.observe(section.element));
  find("variance").innerHTML = varianceHtml();
  document.addEventListener("click", clicked);
  document.addEventListener("change", changed);
  document.addEventListener("keydown", pressed);
  find("query").addEventListener("input", event => ((state.query = event.target.value), apply()));
  find("theme").addEventListener("click", () => {
    const dark = state.theme ? state.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    theme(dark ? "light" : "dark");
    writeAddress();
  });
  addEventListener("hashchange", () => (readAddress(), theme(state.theme), (find("query").value = state.query), apply()));
  addEventListener("resize", () => sections.forEach(hint));
  addEventListener("beforeprint", () => sections.forEach(section => {
    if (!section.rows.length) return;
    if (!section.fresh) draw(section);
    more(section, Infinity);
    section.drawn = false;
    drawInside(section);
  }));
}

begin();
