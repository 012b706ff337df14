"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const main = document.querySelector("main");
const PER_PAGE = 20;
const UNKNOWN = -1;

/** Make an element: make("p.soft", {title: "t"}, "text", child...). Texts are never read as HTML. */
function make(what, attributes = {}, ...children) {
  const [tag, ...classes] = what.split(".");
  const element = document.createElement(tag);
  element.className = classes.join(" ");
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== undefined && child !== ""));
  return element;
}

const percent = (value, digits = 1) => `${(100 * value).toFixed(digits)}%`;
const many = (count, one, more = `${one}s`) => `${count.toLocaleString("en")} ${count === 1 ? one : more}`;
const identity = (number) => (number === UNKNOWN ? "identity unknown" : `identity ${number}`);
const camera = (number) => (number === UNKNOWN ? "" : `camera ${number}`);

/* Sections */

const nav = document.querySelector("nav");
function section(title, text, ...children) {
  const id = title.toLowerCase().replaceAll(" ", "-");
  nav.append(make("a", { href: `#${id}` }, title));
  const element = make("section", { id }, make("h2", {}, title), make("p.soft", {}, text), ...children);
  main.append(element);
  return element;
}

/** Buttons of which one is chosen; `show(key)` is called with its key, and with the first one now. */
function tabs(labels, show) {
  const buttons = labels.map((label, number) =>
    make("button", { type: "button", onclick: () => choose(number) }, label));
  function choose(number) {
    buttons.forEach((button, place) => button.setAttribute("aria-pressed", place === number));
    show(number);
  }
  const bar = make("div.tabs", { role: "group" }, ...buttons);
  bar.hidden = labels.length < 2;
  queueMicrotask(() => choose(0));
  return bar;
}

/* Plots */

const drawn = [];
function colours() {
  const style = getComputedStyle(document.documentElement);
  return (name) => style.getPropertyValue(`--${name}`).trim();
}
function themed(layout) {
  const colour = colours();
  const axis = { gridcolor: colour("line"), zerolinecolor: colour("line"), automargin: true };
  return {
    margin: { l: 60, r: 12, t: 10, b: 45 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: colour("ink"), family: "system-ui, sans-serif" },
    hoverlabel: { bgcolor: colour("raised"), bordercolor: colour("line"), font: { color: colour("ink") } },
    legend: { orientation: "h", y: -0.32, yanchor: "top" },
    hovermode: "closest",
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("soft"), activecolor: colour("accent") },
    ...layout,
    xaxis: { ...axis, ...layout.xaxis },
    yaxis: { ...axis, ...layout.yaxis },
  };
}
function draw(element, traces, layout) {
  drawn.push([element, layout]);
  Plotly.newPlot(element, traces, themed(layout), { responsive: true, displaylogo: false });
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const [element, layout] of drawn) if (element.isConnected) Plotly.relayout(element, themed(layout));
});

function plots(list) {
  return make("div.plots", {}, ...list.map((plot) => {
    const place = make("div.draw", { role: "img", "aria-label": plot.title });
    queueMicrotask(() => draw(place, plot.data, { ...plot.layout, showlegend: plot.data.length > 1 }));
    return make("figure", {}, make("h3", {}, plot.title), place, make("figcaption", {}, plot.caption));
  }));
}

/* Pictures */

const dialog = document.querySelector("dialog");
function enlarge(source, text) {
  dialog.querySelector("img").src = source;
  dialog.querySelector("p").textContent = text;
  dialog.showModal();
}
document.documentElement.style.setProperty("--shape", `${data.shape[1]} / ${data.shape[0]}`);

/** A picture with captions; kind: "query", "right", "wrong" or "". */
function tile(picture, kind, ...captions) {
  const name = data.names[picture];
  return shown(data.images[picture], name, kind, captions);
}
function shown(source, name, kind, captions) {
  const mark = { right: "✓", wrong: "✗" }[kind];
  const image = source
    ? make("img", { src: source, alt: name ?? "", loading: "lazy" })
    : make("span.absent", {}, "cannot be read");
  const button = make("button", { type: "button", title: name, onclick: () => enlarge(source, name ?? "") }, image);
  if (mark) button.append(make("span.mark", { title: kind }, mark));
  return make(`figure.tile.${kind}`, {}, button,
    make("figcaption", {}, ...captions.filter(Boolean).map((caption) => make("div", {}, caption))));
}

function ranked(list) {
  const item = (found) => tile(found.picture, found.right ? "right" : "wrong",
    `${found.place}: ${found.distance.toPrecision(3)}`, identity(found.identity), camera(found.camera));
  const query = tile(list.picture, "query", "query", identity(list.identity), camera(list.camera));
  const row = make("div.row", { tabindex: 0 }, query, make("span.gap"), ...list.found.map(item));
  if (list.missed.length) {
    const more = list["missed in all"] - list.missed.length;
    row.append(make("span.gap", { title: "matches that come later" }), ...list.missed.map(item));
    if (more) row.append(make("p.soft", {}, `and ${many(more, "match", "matches")} later still`));
  }
  return row;
}

/* The sections of a run */

function results(element, tests) {
  const names = [...new Set(tests.flatMap((test) => test.figures.map((figure) => figure.name)))];
  const cells = (figures) => names.map((name) => {
    const figure = figures.find((one) => one.name === name);
    if (!figure || figure.value === null) return make("td");
    const spread = figure.spread === undefined ? "" : ` ± ${percent(figure.spread)}`;
    const interval = figure.low === undefined ? "" : make("small", {}, `${percent(figure.low)} to ${percent(figure.high)}`);
    return make("td", {}, percent(figure.value) + spread, interval);
  });
  const rows = tests.flatMap((test) => {
    const covered = make("td", {}, `${test.covered.toLocaleString("en")} of ${test.queries.toLocaleString("en")}`);
    const row = make("tr", {}, make("td", {}, test.label, test.chosen ? make("small", {}, test.chosen) : ""),
      ...cells(test.figures), covered);
    if (!test.before) return [row];
    const before = Object.entries(test.before).map(([name, value]) => ({ name, value }));
    return [make("tr.soft", {}, make("td", {}, `${test.label}, before training`), ...cells(before), make("td")), row];
  });
  element.append(make("div.scroll", {}, make("table", {},
    make("thead", {}, make("tr", {}, make("th"), ...names.map((name) => make("th", {}, name)), make("th", {}, "queries"))),
    make("tbody", {}, ...rows))));
}

/** Rank lists with controls: sorted, filtered, some at a time. `render(list)` makes the body of one. */
function lists(all, render, orders) {
  const body = make("div");
  const count = make("span.soft", { "aria-live": "polite" });
  const order = make("select", { "aria-label": "order", onchange: restart },
    ...Object.keys(orders).map((name) => make("option", {}, name)));
  const wanted = make("input", { type: "search", inputmode: "numeric", placeholder: "all", oninput: restart });
  const cameras = [...new Set(all.map((list) => list.camera))].filter((one) => one !== UNKNOWN).sort((a, b) => a - b);
  const from = make("select", { onchange: restart }, make("option", { value: "" }, "all"),
    ...cameras.map((number) => make("option", { value: number }, String(number))));
  const wrong = make("input", { type: "checkbox", onchange: restart });
  const more = make("button", { type: "button", onclick: () => { limit += PER_PAGE; show(); } }, "show more");
  let limit = PER_PAGE;
  function restart() { limit = PER_PAGE; show(); }
  function show() {
    const chosen = all.filter((list) =>
      (!wanted.value.trim() || String(list.identity) === wanted.value.trim()) &&
      (!from.value || String(list.camera) === from.value) &&
      (!wrong.checked || list.wrong));
    chosen.sort(orders[order.value]);
    body.replaceChildren(...chosen.slice(0, limit).map((list) => make("div.list", { "data-query": list.query }, ...render(list))));
    count.textContent = chosen.length ? `${Math.min(limit, chosen.length)} of ${many(chosen.length, "query", "queries")}` : "no such query";
    more.hidden = limit >= chosen.length;
  }
  const controls = make("div.controls", {},
    make("label", {}, "order", order), make("label", {}, "identity", wanted));
  if (cameras.length > 1) controls.append(make("label", {}, "camera", from));
  controls.append(make("label", {}, wrong, "only where the first image is wrong"), count);
  show();
  return make("div", {}, controls, body, more);
}

const ORDERS = {
  "worst first": (a, b) => a.AP - b.AP,
  "best first": (a, b) => b.AP - a.AP,
  "by identity": (a, b) => a.identity - b.identity || a.AP - b.AP,
};

function rankLists(test) {
  for (const list of test.lists) list.wrong = list.found.length > 0 && !list.found[0].right;
  const render = (list) => [
    make("div.soft", {}, `average precision ${percent(list.AP)}`), ranked(list)];
  return lists(test.lists, render, ORDERS);
}

function pairsOf(pairs) {
  const group = (title, list, kind) => make("div", {}, make("h3", {}, title), make("div.pairs", {},
    ...list.map((pair) => make("div", {}, make("div.row", {},
      ...pair.pictures.map((picture, side) => tile(picture, kind, identity(pair.identities[side])))),
    make("div.soft", {}, `distance ${pair.distance.toPrecision(3)}`)))));
  return make("div", {}, group("One identity, farthest apart", pairs.genuine, ""),
    group("Two identities, nearest to each other", pairs.impostor, ""));
}

function confusions(list) {
  return make("div.pairs", {}, ...list.map((one) => make("div", {},
    make("div", {}, `${identity(one.identity)} taken for ${one.other}`),
    make("div.soft", {}, `by ${one.count} of ${many(one.of, "query", "queries")}`),
    make("div.row", {}, tile(one.picture, "query", "query"), tile(one.found, "wrong", "found first")))));
}

function looks(list) {
  return make("div.pairs.wide", {}, ...list.map((one) => make("div", {}, make("div.row", {},
    ...one.pair.flatMap((side, number) => [
      shown(side.plain, "", number ? (one.right ? "right" : "wrong") : "query",
        [number ? "found first" : "query", identity(side.identity), camera(side.camera)]),
      shown(side.heat, "", "", ["where it looks"])])))));
}

function map(found) {
  const place = make("div.draw");
  const side = make("div", {}, make("p.soft", {}, "Point at an image, or tap it, to see it here with its kin in colour."));
  const hue = (number) => `hsl(${(number * 137.508) % 360} 60% 50%)`;
  const kinds = { identity: found.identities, camera: found.cameras };
  const distinct = (values) => {
    const known = [...new Set(values)].sort((a, b) => a - b);
    return values.map((value) => known.indexOf(value));
  };
  let by = "identity";
  const marker = (chosen) => {
    const numbers = distinct(kinds[by]);
    const kin = chosen === undefined ? undefined : found.identities[chosen];
    return {
      color: numbers.map(hue),
      opacity: found.identities.map((one) => (kin === undefined || one === kin ? 0.9 : 0.12)),
      size: found.identities.map((one) => (one === kin ? 11 : 7)),
    };
  };
  const paint = (chosen) => Plotly.restyle(place, { marker: [marker(chosen)] });
  const select = make("select", { onchange: () => { by = select.value; paint(); } },
    make("option", {}, "identity"), make("option", {}, "camera"));
  queueMicrotask(() => {
    const axis = { visible: false, showgrid: false, zeroline: false };
    draw(place, [{
      type: "scatter", mode: "markers", x: found.x, y: found.y, marker: marker(), hoverinfo: "text",
      text: found.identities.map((one, number) => [identity(one), camera(found.cameras[number])].filter(Boolean).join(", ")),
    }], { xaxis: axis, yaxis: { ...axis, scaleanchor: "x" }, showlegend: false, margin: { l: 5, r: 5, t: 5, b: 5 } });
    const pick = (event) => {
      const number = event.points[0].pointNumber;
      side.replaceChildren(tile(found.pictures[number], "", identity(found.identities[number]), camera(found.cameras[number])));
      paint(number);
    };
    place.on("plotly_hover", pick);
    place.on("plotly_click", pick);
    place.on("plotly_doubleclick", () => paint());
  });
  return make("div", {}, make("div.controls", {}, make("label", {}, "colour by", select)), make("div.map", {}, place, side));
}

/** A section that shows one test at a time, for the tests that have something to show. */
function byTest(title, text, tests, show) {
  if (!tests.length) return;
  const body = make("div");
  section(title, text,
    tabs(tests.map((test) => test.label), (number) => body.replaceChildren(show(tests[number]))), body);
}

const MEANINGS = {
  "rank k": "the share of queries that have a match, an image of the same identity that counts, among their first k images",
  mAP: "mean average precision: how early all matches of a query come; 100% if none comes after a wrong image",
  mINP: "mean inverse negative penalty: how early the last match of a query comes",
  "TAR@FAR": "the share of true pairs that are accepted, where so many false ones are (1e-3: one in a thousand)",
  AUC: "the area under the curve of these two",
  interval: "drawn again and again from the queries' identities (bootstrap), the figure is in it 95 times of 100",
  "±": "standard deviation over the draws of a protocol that draws at random",
};

function run() {
  const tests = data.tests;
  const summary = section("Results", "Each figure with the interval that holds it with a confidence of 95%.");
  if (tests.length) {
    results(summary, tests);
    summary.append(make("details", {}, make("summary", {}, "What the figures mean"), make("dl", {}, ...Object.entries(MEANINGS).flatMap(
      ([name, text]) => [make("dt", {}, name), make("dd", {}, text)]))));
  }
  else summary.append(make("p", {}, "The run has no test."));
  byTest("Curves", "Rankings and distances of all queries.", tests.filter((test) => test.plots.length), (test) => plots(test.plots));
  if (data.training.length) section("Training", "What was logged on the way.", plots(data.training));
  byTest("Rank lists", "Each query with the images that it found first, then the matches that come later, with their places. Under each image is its place and distance. ✓ is a match, ✗ is none.",
    tests.filter((test) => test.lists), (test) => {
      const some = test.lists.length < test.ranked
        ? make("p.soft", {}, `${test.lists.length} of ${test.ranked} queries are here: three quarters of them those with the lowest average precision, the others from all over the rest.`) : "";
      return make("div", {}, test.remarks ? make("p.note", {}, test.remarks) : "", some, rankLists(test));
    });
  byTest("Hardest pairs", "The pairs that are most likely to be told wrong.", tests.filter((test) => test.pairs), (test) => pairsOf(test.pairs));
  byTest("Confusions", "Identities that were taken for another: how many of their queries found it first, and the worst of these.",
    tests.filter((test) => test.confusions?.length), (test) => confusions(test.confusions));
  byTest("Where it looks", "What in a query and in the image that it found first makes the network find them alike.",
    tests.filter((test) => test.looks?.length), (test) => looks(test.looks));
  byTest("Map", "Images of the gallery on a plane, neighbours near each other (t-SNE). Distances between far groups mean nothing.",
    tests.filter((test) => test.map?.x.length), (test) => make("div", {},
      test.map.x.length < test.map.of ? make("p.soft", {}, `${test.map.x.length} of ${many(test.map.of, "image")}, of identities drawn at random.`) : "", map(test.map)));
  section("Recipe", "With every option written out. Run it again: reidcore run recipe.toml",
    make("dl", {}, ...data.facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)])),
    make("pre", { tabindex: 0 }, data.recipe));
}

/* The sections of a comparison */

function comparison() {
  const table = (test) => {
    const names = [...new Set(test.rows.flatMap((row) => row.figures.map((figure) => figure.name)))];
    const rows = test.rows.map((row) => make("tr", {}, make("td", {}, row.run), ...names.map((name) => {
      const figure = row.figures.find((one) => one.name === name);
      if (!figure || figure.value === null) return make("td");
      const found = row.differences?.[name];
      if (!found) {
        const interval = figure.low === undefined ? "" : make("small", {}, `${percent(figure.low)} to ${percent(figure.high)}`);
        return make("td", {}, percent(figure.value), interval);
      }
      const points = (value) => (value === null ? "?" : `${value >= 0 ? "+" : "−"}${Math.abs(100 * value).toFixed(1)}`);
      return make(`td.${found.verdict}`, { title: found.verdict }, percent(figure.value),
        make("small", {}, `${points(found.value)} (${points(found.low)} to ${points(found.high)})`), make("small", {}, found.verdict));
    })));
    return make("div.scroll", {}, make("table", {}, make("thead", {}, make("tr", {}, make("th"), ...names.map((name) => make("th", {}, name)))),
      make("tbody", {}, ...rows)));
  };
  byTest("Figures", "Below the figures of the first: the interval of each. Below the others': the difference from the first, in points (hundredths), with its interval; all intervals of one row hold at once with a confidence of 97%, so that a difference is rarely called one by chance.",
    data.tests, table);
  byTest("Curves", "All in one.", data.tests.filter((test) => test.plots.length), (test) => plots(test.plots));
  byTest("Changed queries", "The queries whose average precision differs most from that of the first.",
    data.tests.flatMap((test) => test.changed.map((change) => ({ ...change, label: data.tests.length > 1 ? `${test.label}: ${change.run}` : change.run }))),
    (change) => {
      for (const list of change.lists) {
        list.wrong = !list.after.found[0]?.right;
        Object.assign(list, { identity: list.after.identity, camera: list.after.camera, query: list.after.query });
      }
      const render = (list) => [
        make("div", {}, `${change.first}: average precision ${percent(list.before.AP)}`), ranked(list.before),
        make("div", {}, `${change.run}: average precision ${percent(list.after.AP)}`), ranked(list.after)];
      const gain = (list) => list.after.AP - list.before.AP;
      return lists(change.lists, render, {
        "most changed first": (a, b) => Math.abs(gain(b)) - Math.abs(gain(a)),
        "what got worse first": (a, b) => gain(a) - gain(b),
        "what got better first": (a, b) => gain(b) - gain(a),
      });
    });
}

document.querySelector("h1").textContent = data.title;
main.append(...data.notes.map((note) => make("p.note", {}, note)));
({ run, comparison })[data.kind]();
