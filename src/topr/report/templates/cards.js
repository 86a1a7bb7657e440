// One completion as a card: what it was graded, what it weighs, its text or its tokens.
"use strict";
(() => {
  const { element, rich, block, copyButton, plural } = topr;

  const tokensIn = (c) => c.tokens || [];
  const textOf = (c) => (c.tokens ? c.tokens.join("") : c.text || "");
  const gradeOf = (c) => c.grade || "not graded";
  const kindOf = (c) => (["correct", "wrong"].includes(c.grade) ? c.grade : "other");

  function signed(value, digits) {
    const text = Math.abs(value).toFixed(digits);
    return (value < 0 ? "−" : "+") + (digits === 0 && value % 1 ? String(Math.abs(value)) : text);
  }

  function tokensOf(completion) {
    return tokensIn(completion).map((text, i) => {
      const [behavior, policy] = [completion.behavior[i], completion.policy[i]];
      const known = behavior !== null && policy !== null;
      return { text, behavior, policy, ratio: known ? policy - behavior : null };
    });
  }

  function tokenSpan(token) {
    const span = element("span", "token", token.text);
    span.token = token;
    if (token.ratio !== null) {
      span.classList.add(token.ratio >= 0 ? "up" : "down");
      span.style.setProperty("--strength", `${(60 * Math.min(1, Math.abs(token.ratio) / 2)).toFixed(0)}%`);
    }
    return span;
  }

  function card(completion, view) {
    const node = element("div", "rollout");
    const meta = element("div", "meta");
    const parts = [
      completion.greedy ? "greedy" : `sample ${completion.sample}`,
      completion.reward === undefined ? "no reward" : `reward ${signed(completion.reward, 0)}`,
      completion.answer === undefined ? "no answer read" : `answer ${completion.answer}`,
      completion.finish_reason === "length" ? "truncated at the limit" : `ends: ${completion.finish_reason}`,
      plural(completion.length, "token"),
    ];
    const tokens = tokensOf(completion);
    if (tokens.length && !completion.left_out && tokens.every((token) => token.ratio !== null)) {
      parts.push(`log ρ ${signed(tokens.reduce((sum, token) => sum + token.ratio, 0), 2)}`);
    }
    const grade = element("span", `grade ${kindOf(completion)}`, gradeOf(completion).replaceAll("_", " "));
    meta.append(grade, ...parts.map((part) => element("span", "", part)));
    if (completion.weight !== undefined) {
      meta.append(element("span", "weight", `weight ${completion.weight.toPrecision(3)} (${completion.why})`));
    }
    const text = textOf(completion);
    meta.append(copyButton(text));
    const content = document.createDocumentFragment();
    if (tokens.length) {
      content.append(...tokens.map(tokenSpan));
      if (completion.left_out) content.append(` … [${plural(completion.left_out, "token")} left out]`);
    } else {
      content.append(view.plain ? text || "(empty)" : rich(text || "(empty)", view.math));
    }
    node.append(meta, block("completion", text, content, view.wanted));
    return node;
  }

  function showToken(event) {
    const token = event.target.token || event.target.closest?.(".token")?.token;
    if (!token) return;
    const shown = (value) => (value === null ? "unknown" : value.toFixed(3).replace("-", "−"));
    const ratio = token.ratio === null ? "unknown" : signed(token.ratio, 3);
    const text = `“${token.text}”\nlog π ${shown(token.policy)}   log μ ${shown(token.behavior)}\nlog-ratio ${ratio}`;
    topr.showTip(text, event.clientX, event.clientY);
  }

  document.addEventListener("mouseover", showToken);
  document.addEventListener("mouseout", (event) => event.target.token && topr.hideTip());
  document.addEventListener("click", showToken);
  Object.assign(topr, { card, gradeOf, kindOf, textOf });
})();
