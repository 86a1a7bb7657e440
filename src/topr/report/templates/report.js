// The browser of rollouts. What models and users wrote comes from the JSON in #report-data and is set by textContent alone.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("report-data").textContent);
  const root = document.documentElement;
  const byId = (id) => document.getElementById(id);

  function element(tag, className, text) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  }

  // ---- Browser of rollouts -------------------------------------------------------------------

  if (data.sources.length) browse();

  function browse() {
    const state = { source: data.sources[0], problem: null };
    const textOf = (c) => (c.tokens.length ? c.tokens.join("") : c.text);
    const gradeOf = (c) => c.grade || "not graded";

    function matching(problem) {
      const grade = byId("grade").value;
      const text = byId("search").value.trim().toLowerCase();
      const graded = problem.completions.filter((c) => !grade || gradeOf(c) === grade);
      const inProblem = (problem.problem_id + "\n" + problem.prompt).toLowerCase().includes(text);
      if (!text || inProblem) return graded;
      return graded.filter((c) => textOf(c).toLowerCase().includes(text));
    }

    function selectSource() {
      state.source = data.sources[Number(byId("source").value)];
      const chosen = byId("grade").value;
      const all = state.source.problems.flatMap((p) => p.completions.map(gradeOf));
      const grades = [...new Set(all)].sort();
      byId("grade").replaceChildren(...["", ...grades].map((grade) => {
        const option = element("option", "", grade ? grade.replaceAll("_", " ") : "any");
        option.value = grade;
        return option;
      }));
      byId("grade").value = grades.includes(chosen) ? chosen : "";
      list();
    }

    function list() {
      const { source } = state;
      const found = source.problems.map((p) => [p, matching(p)]).filter(([, cs]) => cs.length);
      const kept = found.find(([p]) => state.problem && p.problem_id === state.problem.problem_id);
      state.problem = (kept || found[0] || [null])[0];
      const count = source.problems.reduce((n, p) => n + p.completions.length, 0);
      byId("shown").textContent =
        `This page holds ${source.problems.length.toLocaleString("en")} of ` +
        `${source.problems_total.toLocaleString("en")} problems and ${count.toLocaleString("en")} of ` +
        `${source.completions_total.toLocaleString("en")} completions of this set; ` +
        `${found.length.toLocaleString("en")} problems match.`;
      byId("problems").replaceChildren(...found.map(([problem]) => entry(problem)));
      show();
    }

    function entry(problem) {
      const correct = problem.completions.filter((c) => c.grade === "correct").length;
      const button = element("button");
      button.type = "button";
      const row = element("span", "row");
      row.append(
        element("b", "", problem.problem_id),
        element("span", "", `${correct}/${problem.completions.length} correct`),
      );
      const bar = element("span", "stack");
      for (const kind of ["correct", "wrong", "other"]) {
        const n = problem.completions.filter((c) => kindOf(c) === kind).length;
        if (!n) continue;
        const part = element("i", `outcome-${kind}`);
        part.style.width = `${(100 * n) / problem.completions.length}%`;
        bar.append(part);
      }
      button.append(row, element("span", "start", problem.prompt.slice(-160)), bar);
      button.problem = problem;
      button.addEventListener("click", () => { state.problem = problem; show(); });
      const item = element("li");
      item.append(button);
      return item;
    }

    function kindOf(completion) {
      return ["correct", "wrong"].includes(completion.grade) ? completion.grade : "other";
    }

    function show() {
      for (const button of byId("problems").querySelectorAll("button")) {
        button.setAttribute("aria-current", String(button.problem === state.problem));
      }
      const place = byId("problem");
      if (!state.problem) {
        place.replaceChildren(element("p", "empty", "Nothing matches."));
        return;
      }
      const { problem } = state;
      const gold = element("p", "gold", problem.gold === null ? "No gold answer." : "Gold answer: ");
      if (problem.gold !== null) gold.append(element("b", "", problem.gold));
      const prompt = element("pre", "prompt", problem.prompt);
      place.replaceChildren(element("h3", "", problem.problem_id), prompt, gold);
      place.append(...matching(problem).map(card));
      place.scrollTop = 0;
      prompt.scrollTop = prompt.scrollHeight; // the question stands at the end
    }

    function card(completion) {
      const node = element("div", "rollout");
      const meta = element("div", "meta");
      const parts = [
        completion.greedy ? "greedy" : `sample ${completion.sample}`,
        completion.reward === null ? "no reward" : `reward ${signed(completion.reward, 0)}`,
        completion.answer === null ? "no answer read" : `answer ${completion.answer}`,
        completion.finish_reason === "length" ? "cut off at the limit" : `ends: ${completion.finish_reason}`,
        `${completion.length.toLocaleString("en")} tokens`,
      ];
      const grade = element("span", `grade ${kindOf(completion)}`, gradeOf(completion).replaceAll("_", " "));
      meta.append(grade, ...parts.map((part) => element("span", "", part)));
      const text = element("pre", "completion");
      if (completion.tokens.length) {
        const tokens = tokensOf(completion);
        if (!completion.left_out && tokens.every((token) => token.ratio !== null)) {
          const sum = tokens.reduce((total, token) => total + token.ratio, 0);
          meta.append(element("span", "", `log ρ ${signed(sum, 2)}`));
        }
        text.append(...tokens.map(tokenSpan));
        if (completion.left_out) text.append(` … [${completion.left_out} tokens left out]`);
      } else {
        text.textContent = completion.text || "(empty)";
      }
      node.append(meta, text);
      return node;
    }

    byId("source").addEventListener("change", selectSource);
    byId("grade").addEventListener("change", list);
    byId("search").addEventListener("input", list);
    byId("source").value = String(data.first_source);
    selectSource();
  }

  // ---- Tokens --------------------------------------------------------------------------------

  function tokensOf(completion) {
    return completion.tokens.map((text, i) => {
      const behavior = completion.behavior[i];
      const policy = completion.policy[i];
      const known = behavior !== null && policy !== null;
      return { text, behavior, policy, ratio: known ? policy - behavior : null };
    });
  }

  function signed(value, digits) {
    const text = Math.abs(value).toFixed(digits);
    return (value < 0 ? "−" : "+") + (digits === 0 && value % 1 ? String(Math.abs(value)) : text);
  }

  function tokenSpan(token) {
    const span = element("span", "token", token.text);
    span.token = token;
    if (token.ratio !== null) {
      const strength = Math.min(1, Math.abs(token.ratio) / 2) * 0.6;
      const hue = token.ratio >= 0 ? "up" : "down";
      span.style.backgroundColor = `rgba(var(--${hue}), ${strength.toFixed(3)})`;
    }
    return span;
  }

  function showTip(event) {
    const token = event.target.token;
    if (!token) return;
    const shown = (value) => (value === null ? "unknown" : value.toFixed(3).replace("-", "−"));
    const text =
      `“${token.text}”\nlog π ${shown(token.policy)}   log μ ${shown(token.behavior)}\n` +
      `log-ratio ${token.ratio === null ? "unknown" : signed(token.ratio, 3)}`;
    topr.showTip(text, event.clientX, event.clientY);
  }

  document.addEventListener("mouseover", showTip);
  document.addEventListener("mouseout", (event) => event.target.token && topr.hideTip());
  document.addEventListener("click", showTip);
})();
