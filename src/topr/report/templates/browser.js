// The browser of rollouts: which problems are listed, which one is shown, next to what. Its state
// is in the page's address: #show=topr&next=base&change=gained&p=problem-id.
"use strict";
(async () => {
  const { element, rich, block, button, copyButton, plural, card, gradeOf, kindOf, textOf } = topr;
  const byId = (id) => document.getElementById(id);
  const bytes = Uint8Array.from(atob(byId("report-data").textContent), (c) => c.charCodeAt(0));
  const unpacked = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const data = JSON.parse(await new Response(unpacked).text());
  if (!data.sources.length) return;
  byId("browser").hidden = false;

  const FIELDS = ["show", "next", "change", "grade", "sort", "search", "plain"];
  let current = null; // the problem that is shown
  let listed = [];

  const source = (label) => data.sources.find((s) => s.label === label);
  const shownSource = () => source(byId("show").value);
  const nextSource = () => source(byId("next").value);
  const problemsOf = (s) => s?.problems || [];
  const twin = (problem) => problemsOf(nextSource()).find((p) => p.problem_id === problem.problem_id);
  const completions = (problem) => problem.completions || [];
  const wanted = () => byId("search").value.trim().toLowerCase();
  const isRight = (problem) => problem.right === true; // false is not written
  const moved = (problem) => (twin(problem)?.share === undefined ? 0 : problem.share - twin(problem).share);

  const CHANGES = {
    gained: (after, before) => isRight(after) && !isRight(before),
    lost: (after, before) => !isRight(after) && isRight(before),
    up: (after, before) => after.share > before.share,
    down: (after, before) => after.share < before.share,
    same: (after, before) => after.share === before.share,
  };
  const ORDERS = {
    low: (a, b) => rate(a) - rate(b),
    high: (a, b) => rate(b) - rate(a),
    rose: (a, b) => moved(b) - moved(a),
    fell: (a, b) => moved(a) - moved(b),
    text: (a, b) => a.question.localeCompare(b.question),
  };

  // Of the samples where an evaluation says so; of a training's examples, those that are here.
  function rate(problem) {
    const right = completions(problem).filter((c) => c.grade === "correct").length;
    return problem.share ?? right / completions(problem).length;
  }

  function matching(problem) {
    const [grade, text] = [byId("grade").value, wanted()];
    const graded = completions(problem).filter((c) => !grade || gradeOf(c) === grade);
    const about = [problem.problem_id, problem.question, problem.prompt || ""].join("\n").toLowerCase();
    return !text || about.includes(text) ? graded : graded.filter((c) => textOf(c).toLowerCase().includes(text));
  }

  function changed(problem) {
    const change = byId("change").value;
    const other = twin(problem);
    return !change || (other?.share !== undefined && CHANGES[change](problem, other));
  }

  // ---- The address ---------------------------------------------------------------------------

  function writeAddress() {
    const found = new URLSearchParams();
    for (const id of FIELDS) {
      const value = id === "plain" ? (byId(id).checked ? "1" : "") : byId(id).value;
      if (value) found.set(id, value);
    }
    if (current) found.set("p", current.problem_id);
    history.replaceState(null, "", `#${found}`);
  }

  function readAddress() {
    const given = new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");
    const [before, after] = data.pairs[0] || ["", data.sources[0].label];
    const first = source(given.get("show")) ? given.get("show") : after;
    byId("show").value = first;
    fillNext(given.has("show") ? given.get("next") || "" : before);
    fillGrades();
    for (const id of ["change", "grade", "sort", "search"]) byId(id).value = given.get(id) || "";
    byId("plain").checked = given.get("plain") === "1";
    list(given.get("p"));
    return given.has("show");
  }

  // ---- Controls and the list -----------------------------------------------------------------

  function options(select, values, chosen) {
    select.replaceChildren(...values.map(([value, label]) => Object.assign(element("option", "", label), { value })));
    select.value = values.some(([value]) => value === chosen) ? chosen : "";
  }

  function fillNext(chosen) {
    const here = shownSource();
    const ids = new Set(problemsOf(here).map((p) => p.problem_id));
    const others = data.evaluations.filter((label) =>
      label !== here.label && problemsOf(source(label)).some((p) => ids.has(p.problem_id)));
    options(byId("next"), [["", "nothing"], ...others.map((label) => [label, label])], chosen);
  }

  function fillGrades() {
    const all = problemsOf(shownSource()).flatMap((p) => completions(p).map(gradeOf));
    const grades = [...new Set(all)].sort().map((grade) => [grade, grade.replaceAll("_", " ")]);
    options(byId("grade"), [["", "any"], ...grades], byId("grade").value);
  }

  function list(id = current?.problem_id) {
    const here = shownSource();
    byId("change").disabled = !nextSource();
    if (!nextSource()) byId("change").value = "";
    listed = problemsOf(here).filter((problem) => changed(problem) && matching(problem).length);
    if (byId("sort").value) listed.sort(ORDERS[byId("sort").value]);
    current = listed.find((problem) => problem.problem_id === id) || listed[0] || null;
    const cards = problemsOf(here).reduce((n, problem) => n + completions(problem).length, 0);
    byId("shown").textContent =
      `${plural(listed.length, "problem")} of the ${problemsOf(here).length.toLocaleString("en")} on this page; ` +
      `the whole set: ${plural(here.problems_total, "problem")}, ${plural(here.completions_total, "completion")}, ` +
      `${cards.toLocaleString("en")} of them here.`;
    byId("problems").replaceChildren(...listed.map(entry));
    show();
  }

  function entry(problem) {
    const node = element("button");
    node.type = "button";
    node.title = problem.problem_id;
    node.problem = problem;
    const found = completions(problem);
    const start = element("span", "start", problem.question);
    const row = element("span", "row");
    const other = twin(problem);
    const percent = (p) => `${Math.round(100 * rate(p))} %`;
    const share = other ? `${percent(other)} → ${percent(problem)} right` : `${percent(problem)} right`;
    const change = other ? Object.keys(CHANGES).slice(0, 2).find((name) => CHANGES[name](problem, other)) : null;
    row.append(element("span", "", share), element("b", change || "", { gained: "wrong → right", lost: "right → wrong" }[change] || ""));
    const bar = element("span", "stack");
    for (const kind of ["correct", "wrong", "other"]) {
      const n = found.filter((c) => kindOf(c) === kind).length;
      const part = element("i", `outcome-${kind}`);
      part.style.width = `${(100 * n) / found.length}%`;
      if (n) bar.append(part);
    }
    node.append(start, row, bar);
    node.addEventListener("click", () => { current = problem; show(); });
    const item = element("li");
    item.append(node);
    return item;
  }

  // ---- One problem ---------------------------------------------------------------------------

  function show() {
    for (const node of byId("problems").querySelectorAll("button")) {
      node.setAttribute("aria-current", String(node.problem === current));
      if (node.problem === current && byId("problems").contains(document.activeElement)) node.focus();
    }
    const place = byId("problem");
    topr.hideTip();
    writeAddress();
    if (!current) {
      place.replaceChildren(element("p", "empty", "Nothing matches."));
      return;
    }
    const view = { plain: byId("plain").checked, math: data.math, wanted: wanted() };
    const head = element("div", "head");
    const step = (by) => () => move(by);
    head.append(element("span", "id", current.problem_id), copyButton(current.prompt || current.question, "copy prompt"), copyButton(location.href, "copy address"), button("previous", step(-1)), button("next", step(1)));
    const question = view.plain ? current.question : rich(current.question, view.math);
    place.replaceChildren(head, block("prompt", current.question, question, view.wanted));
    if (current.prompt) {
      const whole = element("details");
      whole.append(element("summary", "", "The whole prompt, as the model saw it"), element("pre", "", current.prompt));
      place.append(whole);
    }
    const gold = element("p", "gold", current.gold === undefined ? "No gold answer." : "Gold answer: ");
    if (current.gold !== undefined) gold.append(element("b", "", current.gold));
    const columns = element("div", "columns");
    const other = twin(current);
    if (other) columns.append(column(byId("next").value, other, completions(other), view));
    columns.append(column(byId("show").value, current, matching(current), view));
    place.append(gold, columns);
    place.scrollTop = 0;
  }

  function column(label, problem, shown, view) {
    const node = element("div");
    const title = element("h3", "", label);
    const all = completions(problem).length;
    const share = problem.share === undefined ? "" : `${Math.round(100 * problem.share)} % of the samples right; `;
    title.append(element("small", "", `${share}${plural(shown.length, "completion")}${shown.length < all ? ` of ${all}` : ""}`));
    node.append(title, ...shown.map((completion) => card(completion, view)));
    return node;
  }

  function move(by) {
    const at = listed.indexOf(current) + by;
    if (!listed[at]) return;
    current = listed[at];
    show();
    byId("problems").querySelector('[aria-current="true"]').scrollIntoView({ block: "nearest" });
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input[type=search], select")) return;
    const inList = byId("problems").contains(event.target);
    const by = { j: 1, k: -1, ...(inList && { ArrowDown: 1, ArrowUp: -1 }) }[event.key];
    if (by) move(by);
    else if (event.key === "/") byId("search").focus();
    else return;
    event.preventDefault();
  });
  byId("show").addEventListener("change", () => { fillNext(byId("next").value); fillGrades(); list(); });
  for (const id of ["next", "change", "grade", "sort"]) byId(id).addEventListener("change", () => list());
  byId("search").addEventListener("input", () => list());
  byId("plain").addEventListener("change", show);
  addEventListener("hashchange", () => {
    if (location.hash.includes("=") && readAddress()) byId("rollouts").scrollIntoView(); // else a section
  });
  const asked = location.hash;
  if (readAddress()) byId("rollouts").scrollIntoView();
  else if (asked) history.replaceState(null, "", asked);
  else history.replaceState(null, "", location.pathname);
})();
