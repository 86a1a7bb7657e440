// Text of models and users as nodes of the page: plain, or with formulas and a little Markdown.
// Elements are made here by name; what a model wrote is only ever set as text.
"use strict";
(() => {
  const MATHML = "http://www.w3.org/1998/Math/MathML";

  function element(tag, className, text) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  }

  // A formula's tree, [element, attributes, text or children], was made by topr/report/mathml.py
  // of elements that it lists.
  function formula([tag, attributes, inside]) {
    const node = document.createElementNS(MATHML, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (typeof inside === "string") node.textContent = inside;
    else node.append(...inside.map(formula));
    return node;
  }

  // **bold**, *italic*, `code` and formulas; a star inside 3*4 or 3 * 4 is a star.
  const MARKS = String.raw`\x60[^\x60\n]+\x60|\*\*(?=\S)[^\n]{1,400}?\S\*\*|(?<![\w*])\*(?=[^\s*])[^*\n]{0,200}[^\s*]\*(?![\w*])`;
  const FENCED = /^[ \t]*```.*\n?([^]*?)(?:^[ \t]*```[ \t]*$\n?|(?![^]))/m;

  // A formula as the trees are called by: its white space is made one. Undefined: it has no tree.
  function known(text, math) {
    const key = text.split(/\s+/).join(" ");
    return Object.hasOwn(math.trees, key) ? key : undefined;
  }

  function inline(text, math) {
    const found = document.createDocumentFragment();
    let end = 0;
    for (const match of text.matchAll(new RegExp(`${math.pattern}|${MARKS}`, "gu"))) {
      const node = marked(match[0], math);
      if (!node) continue;
      found.append(text.slice(end, match.index), node);
      end = match.index + match[0].length;
    }
    found.append(text.slice(end));
    return found;
  }

  function marked(text, math) {
    if (text.startsWith("`")) return element("code", "", text.slice(1, -1));
    const [tag, size] = text.startsWith("**") ? ["strong", 2] : ["em", 1];
    if (text.startsWith("*")) {
      const node = element(tag);
      node.append(inline(text.slice(size, -size), math));
      return node;
    }
    const key = known(text, math);
    if (!key) return null;
    const node = formula(math.trees[key]);
    node.setAttribute("aria-label", text);
    return node;
  }

  // Fenced code as it is, all else with its marks.
  function rich(text, math) {
    const found = document.createDocumentFragment();
    text.split(FENCED).forEach((part, i) => {
      found.append(i % 2 ? element("pre", "code", part.replace(/\n$/, "")) : prose(part, math));
    });
    return found;
  }

  // Headings, lists and lines; "* 4 = 8" is arithmetic. A display formula over several lines is made
  // one first.
  function prose(text, math) {
    const found = document.createDocumentFragment();
    const lines = text.replaceAll(new RegExp(math.pattern, "gu"), (m) => known(m, math) ?? m).split("\n");
    lines.forEach((line, i) => {
      const heading = line.match(/^(#{1,4})\s+(\S.*)$/);
      const item = line.match(/^\s*(?:[-*+](?=\s+[^\s\d])|(\d{1,3}[.)]))\s+(\S.*)$/);
      if (heading || item) {
        const node = element("div", heading ? "heading" : "item");
        if (item) node.dataset.mark = item[1] || "•";
        node.append(inline(heading ? heading[2] : item[2], math));
        found.append(node);
      } else {
        found.append(inline(line, math), i < lines.length - 1 ? "\n" : "");
      }
    });
    return found;
  }

  // Puts <mark> around what is searched for, in text that is already on the page.
  function mark(node, wanted) {
    if (!wanted) return;
    const walker = document.createTreeWalker(node, NodeFilter.SHOW_TEXT);
    const texts = [];
    while (walker.nextNode()) texts.push(walker.currentNode);
    for (let text of texts) {
      if (text.parentElement.namespaceURI === MATHML) continue;
      let at;
      while ((at = text.data.toLowerCase().indexOf(wanted)) >= 0) {
        const hit = text.splitText(at);
        text = hit.splitText(wanted.length);
        const around = element("mark");
        hit.replaceWith(around);
        around.append(hit);
      }
    }
  }

  function button(label, action) {
    const node = element("button", "small", label);
    node.type = "button";
    node.addEventListener("click", () => action(node));
    return node;
  }

  function copyButton(text, label = "copy") {
    return button(label, async (node) => {
      await navigator.clipboard.writeText(text);
      node.textContent = "copied";
      setTimeout(() => { node.textContent = label; }, 1200);
    });
  }

  // A block of text: long ones are folded until asked for.
  function block(className, text, content, wanted) {
    const node = element("div");
    const body = element("div", className);
    body.append(content);
    mark(body, wanted);
    node.append(body);
    if ((text.length > 900 || text.split("\n").length > 14) && !body.querySelector("mark")) {
      body.classList.add("folded");
      node.append(button(`Show all ${text.length.toLocaleString("en")} characters`, (more) => {
        body.classList.remove("folded");
        more.remove();
      }));
    }
    return node;
  }

  function plural(count, noun) {
    return `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
  }

  Object.assign(topr, { element, rich, block, button, copyButton, plural });
})();
