// Draws what /api/runs tells, every other second. Text from outside becomes text nodes only, never markup.
const SECONDS = 2;
const token = location.hash.slice(1);
const headers = { "X-Loratune-Token": token };
const SVG = "http://www.w3.org/2000/svg";
const shown = new Map();

function element(name, attributes = {}, text = "") {
  const made = name.startsWith("svg:") ? document.createElementNS(SVG, name.slice(4)) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== "") made.textContent = text;
  return made;
}

function tell(article, name, text) {
  const place = article.querySelector(`[data-text="${name}"]`);
  if (place.textContent !== text) place.textContent = text;
}

function table(heads, rows) {
  if (!rows.length) return element("p", { class: "none" }, "None yet.");
  const made = element("table"), head = element("tr"), body = element("tbody");
  for (const each of heads) head.append(element("th", {}, each));
  for (const row of rows) {
    const line = element("tr");
    for (const each of row) line.append(element("td", {}, each));
    body.append(line);
  }
  const top = element("thead");
  top.append(head);
  made.append(top, body);
  return made;
}

function evidence(each) {
  const line = element("li"), claim = element("span", {}, each.claim);
  line.append(element("span", { class: `mark ${each.kind}` }, `${each.mark} ${each.state}`));
  if (each.number) claim.append(element("span", { class: "number" }, each.number));
  line.append(claim);
  return line;
}

// About `wanted` round numbers between two ends.
function ticks(low, high, wanted) {
  const rough = (high - low) / wanted || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough);
  const found = [];
  for (let each = Math.ceil(low / step) * step; each <= high + step * 1e-9; each += step) found.push(each);
  return found.map((each) => Number(each.toPrecision(6)));
}

function chart(place, height, label, xs, ys, words) {
  const width = Math.max(280, place.clientWidth), left = 46, right = 24, bottom = 26, top = 8;
  const x = (value) => left + ((value - xs[0]) / (xs[1] - xs[0] || 1)) * (width - left - right);
  const y = (value) => height - bottom - ((value - ys[0]) / (ys[1] - ys[0] || 1)) * (height - bottom - top);
  const made = element("svg:svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  for (const each of ticks(xs[0], xs[1], width < 500 ? 4 : 8)) {
    const text = element("svg:text", { x: x(each), y: height - 8, "text-anchor": "middle" }, words.x(each));
    made.append(text);
  }
  for (const each of words.y ? ticks(ys[0], ys[1], 5) : []) {
    made.append(element("svg:line", { class: "grid", x1: left, x2: width - right, y1: y(each), y2: y(each) }));
    made.append(element("svg:text", { x: left - 6, y: y(each) + 4, "text-anchor": "end" }, words.y(each)));
  }
  return { made, x, y };
}

function nothing(place, text) {
  place.replaceChildren(element("p", { class: "none" }, text));
}

function drawCurves(place, curves) {
  const values = curves.flatMap((each) => each.points.map((point) => point[1])).sort((a, b) => a - b);
  if (!values.length) return nothing(place, "No trial has been read yet.");
  const low = values[0], high = values[Math.floor(0.97 * (values.length - 1))];
  const room = Math.max(high - low, 1e-3) * 0.06;
  const words = { x: (value) => `${Math.round(100 * value)} %`, y: (value) => `${value}` };
  const label = `Learning curves of ${curves.length} trials`;
  const { made, x, y } = chart(place, 320, label, [0, 1], [low - room, high + room], words);
  const last = (curve) => curve.points[curve.points.length - 1][1];
  const ended = curves.filter((each) => each.kind === "complete");
  const best = ended.reduce((one, two) => (one && last(one) <= last(two) ? one : two), null);
  for (const each of [...curves.filter((each) => each !== best), ...(best ? [best] : [])]) {
    const points = each.points.length > 1 ? each.points : [[0, each.points[0][1]], ...each.points];
    const line = element("svg:polyline", {
      class: each === best ? "best" : each.kind,
      points: points.map((point) => `${x(point[0]).toFixed(1)},${Math.max(2, y(point[1])).toFixed(1)}`).join(" "),
    });
    line.append(element("svg:title", {}, `${each.label}: ${last(each).toFixed(4)} (${each.kind})`));
    made.append(line);
  }
  place.replaceChildren(made);
}

function drawLanes(place, lanes) {
  if (!lanes.length) return nothing(place, "No trial has begun, or an earlier version, which noted no times, trained them.");
  const end = Math.max(...lanes.map((each) => each.ended)), count = 1 + Math.max(...lanes.map((each) => each.lane));
  const high = Math.min(14, Math.max(4, 240 / count)), height = count * high + 40;
  const [unit, name] = end > 7200 ? [3600, "h"] : end > 200 ? [60, "min"] : [1, "s"];
  const words = { x: (value) => `${value} ${name}` };
  const label = `${lanes.length} trials in up to ${count} slots`;
  const { made, x } = chart(place, height, label, [0, end / unit || 1], [0, 1], words);
  for (const each of lanes) {
    const begin = x(each.began / unit), bar = element("svg:rect", {
      class: each.kind, x: begin, y: 6 + each.lane * high, height: high - 2, rx: 1,
      width: Math.max(1, x(each.ended / unit) - begin - 1),
    });
    const took = `${(each.ended - each.began).toFixed(1)} s`;
    bar.append(element("svg:title", {}, `${each.label}: ${took} (${each.kind})`));
    made.append(bar);
  }
  place.replaceChildren(made);
}

function stopButton(article, number) {
  const button = article.querySelector("button");
  let timer = 0;
  button.addEventListener("click", async () => {
    clearTimeout(timer);
    if (!button.classList.contains("sure")) {
      button.classList.add("sure");
      button.textContent = "Stop now, keep what is known";
      timer = setTimeout(() => calm(button), 5000);
      return;
    }
    button.disabled = true;
    await fetch(`api/runs/${number}/stop`, { method: "POST", headers });
    calm(button);
    await poll();
  });
}

function calm(button) {
  button.classList.remove("sure");
  button.textContent = "Stop the search";
}

function draw(run, number, heads) {
  let article = shown.get(number);
  if (!article) {
    article = document.getElementById("run").content.firstElementChild.cloneNode(true);
    document.getElementById("runs").append(article);
    shown.set(number, article);
    stopButton(article, number);
  }
  article.className = `run ${run.status.split(",")[0].split(" ")[0]}`;
  for (const name of ["title", "model", "data", "status", "details"]) tell(article, name, run[name]);
  tell(article, "stage", run.over ? "" : run.stage);
  tell(article, "figures", [run.counts, run.times, run.speed, run.pack && `${run.pack} slots busy`].filter(Boolean).join(" · "));
  tell(article, "answer", run.answer && `${run.over ? "Recommended" : "If it ended now"}: ${run.answer}.`);
  const button = article.querySelector("button");
  button.hidden = !run.can_stop && !run.stopping;
  button.disabled = run.stopping;
  const bar = article.querySelector("progress");
  bar.max = Math.max(1, run.trials);
  bar.value = run.done;
  const report = article.querySelector("[data-report]");
  report.hidden = !run.report;
  if (run.report) report.setAttribute("href", `runs/${number}/report.html?token=${encodeURIComponent(token)}`);
  article.querySelector('[data-list="verdict"]').replaceChildren(...run.verdict.map((each) => element("p", { class: "verdict" }, each)));
  drawCurves(article.querySelector('[data-plot="curves"]'), run.curves);
  drawLanes(article.querySelector('[data-plot="lanes"]'), run.lanes);
  article.querySelector("[data-live]").hidden = run.over;
  for (const name of ["leaders", "training"]) {
    article.querySelector(`[data-table="${name}"]`).replaceChildren(table(heads[name], run[name]));
  }
  article.querySelector("[data-evidence]").replaceChildren(...run.evidence.map(evidence));
  article.querySelector("[data-untested]").hidden = run.evidence.length > 0;
  article.querySelector("[data-notes]").replaceChildren(...run.notes.map((each) => element("li", {}, each)));
}

function trouble(text) {
  const place = document.getElementById("trouble");
  place.textContent = text;
  place.hidden = !text;
}

async function poll() {
  let answer;
  try {
    answer = await fetch("api/runs", { headers });
  } catch {
    return trouble("loratune watch does not answer any more; start it again. The run itself is not affected.");
  }
  if (!answer.ok) return trouble("Open the whole address that loratune watch has printed: it ends with the key to this page.");
  const state = await answer.json();
  trouble("");
  document.getElementById("runs").classList.toggle("several", state.runs.length > 1);
  state.runs.forEach((run, number) => draw(run, number, state.heads));
  const under = state.runs.filter((run) => !run.over).length;
  document.title = under ? `${state.runs[0].counts || state.runs[0].stage} · loratune` : "done · loratune";
}

async function loop() {
  if (!document.hidden) await poll();
  setTimeout(loop, 1000 * SECONDS);
}

document.addEventListener("visibilitychange", () => document.hidden || poll());
loop();
