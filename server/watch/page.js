"use strict";
// All text goes in as text, never as markup: names and words of sites are shown, and not obeyed.

const POLL_MS = 1000;
const SVG = "http://www.w3.org/2000/svg";
const at = (id) => document.getElementById(id);
const put = (id, text) => { if (at(id).textContent !== text) at(id).textContent = text; };

function made(name, facts = {}, ...children) {
  const node = document.createElementNS(name === "svg" || facts.svg ? SVG : "http://www.w3.org/1999/xhtml", name);
  for (const [key, value] of Object.entries(facts)) if (key !== "svg") node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function size(count) {
  for (const [unit, name] of [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"]])
    if (count >= unit) return `${(count / unit).toFixed(1)} ${name}`;
  return `${count} B`;
}

function ago(seconds) {
  if (seconds === null) return "never";
  for (const [unit, name] of [[86400, "days"], [3600, "hours"], [60, "minutes"], [1, "seconds"]])
    if (seconds >= 2 * unit) return `${Math.round(seconds / unit)} ${name} ago`;
  return "now";
}

const figure = (value) => (value === null || value === undefined ? "–" : value.toFixed(3));
// A task's metrics come with its headline first, and what stands beside it second; no other takes its place.
const metricAt = (values, place) => {
  const key = Object.keys(values)[place];
  return key !== undefined && values[key] !== null ? key : undefined;
};
const told = (run, metrics, few = [], place = 0) => {
  const tasks = Object.entries(metrics);
  const said = ([task, values]) => {
    const key = metricAt(values, place);
    if (few.includes(task)) return place ? undefined : "too few to say";
    return key && `${run.called[task][key].title} ${figure(values[key])}`;
  };
  const known = tasks.filter((one) => said(one));
  return known.map((one) => (tasks.length > 1 ? `${one[0]} ` : "") + said(one)).join(", ") || "–";
};
const counted = (codes) => Object.entries(codes).map(([code, count]) => `${code} ×${count}`).join(", ");

function row(cells) {
  return made("tr", {}, ...cells.map(([text, kind]) => made("td", kind ? { class: kind } : {}, text)));
}

function stage(name, number, rounds) {
  if (["", "greeting", "evaluate"].includes(name)) return name || "–";
  return `${name}, round ${number}${rounds ? ` of ${rounds}` : ""}`;
}

function siteRow(run, site) {
  const contact = site.contact ? `${site.contact}, heard of ${ago(site.heard_s)}` : "–";
  const now = site.answered === null ? "–" : site.answered ? "answered" : "at work";
  const last = site.exchange ? `${site.exchange}: ${stage(site.stage, site.round, 0)}` : "–";
  const epsilon = site.epsilon === null ? "–" : `${site.epsilon.toPrecision(3)} per ${site.unit}`;
  const refusals = counted(site.refusals);
  return row([
    [site.name, ""], [contact, site.contact], [now, ""], [last, ""],
    [told(run, site.metrics, site.few), "figures"], [told(run, site.metrics, site.few, 1), "figures"], [epsilon, "number"],
    [refusals || "–", refusals ? "trouble" : ""],
  ]);
}

function roundRow(run, one) {
  const missing = Object.entries(one.missing).map(([site, code]) => `${site}: ${code}`).join("; ");
  const number = one.stage === "evaluate" ? "–" : `${one.round} of ${one.rounds}`;
  return row([
    [String(one.exchange), "number"], [one.stage, ""], [number, ""], [`${one.aggregated} of ${one.asked}`, ""],
    [told(run, one.metrics), ""], [figure(one.loss), "number"], [size(one.bytes_up), "number"],
    [size(one.bytes_down), "number"], [one.seconds.toFixed(1), "number"], [missing || "–", missing ? "trouble" : ""],
  ]);
}

// A share goes from 0 to 1; what has no such ends goes as far as its values do.
function chart(task, metric, called, points, total) {
  const [width, height, left, bottom] = [640, 200, 44, 22];
  const values = points.map(([, value]) => value);
  const base = called.low === 0 ? 0 : Math.min(0, ...values) * 1.06;
  const top = called.high === 1 ? 1 : Math.max(0, ...values) * 1.06 || base + 1;
  const x = (exchange) => left + ((width - left - 10) * (exchange - 1)) / Math.max(1, total - 1);
  const y = (value) => 8 + (height - bottom - 8) * (1 - (value - base) / (top - base));
  const draw = made("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${called.title} of ${task} by exchange` });
  for (const share of [0, 0.5, 1]) {
    const kind = metric === "auroc" && share === 0.5 ? "chance" : "axis";
    const value = base + share * (top - base);
    draw.append(made("line", { svg: 1, class: kind, x1: left, x2: width - 10, y1: y(value), y2: y(value) }));
    draw.append(made("text", { svg: 1, x: 4, y: y(value) + 4 }, value.toFixed(1)));
  }
  draw.append(made("text", { svg: 1, x: left, y: height - 5 }, "exchange 1"));
  draw.append(made("text", { svg: 1, x: width - 10, y: height - 5, "text-anchor": "end" }, String(total)));
  const path = points.map(([exchange, value]) => `${x(exchange).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
  draw.append(made("polyline", { svg: 1, class: "line", points: path }));
  for (const [exchange, value] of points)
    draw.append(made("circle", { svg: 1, r: 3, cx: x(exchange).toFixed(1), cy: y(value).toFixed(1) }));
  return made("figure", {}, made("figcaption", {}, `${task}: mean ${called.title} over the sites that were measured, now ${figure(points.at(-1)[1])}`), draw);
}

function charts(run) {
  const lines = new Map();
  for (const one of run.history)
    for (const [task, values] of Object.entries(one.metrics)) {
      const metric = metricAt(values, 0);
      if (metric) lines.set(task, { metric, points: [...(lines.get(task)?.points || []), [one.exchange, values[metric]]] });
    }
  at("nometrics").hidden = lines.size > 0;
  at("charts").replaceChildren(...[...lines].map(([task, { metric, points }]) => chart(task, metric, run.called[task][metric], points, run.exchanges)));
}

function privacy(run) {
  const spent = run.sites.filter((site) => site.epsilon !== null);
  if (spent.length === 0) return "none";
  return `ε ≤ ${Math.max(...spent.map((site) => site.epsilon)).toPrecision(3)} per ${spent[0].unit}`;
}

function show(view) {
  const run = view.run;
  put("server", view.consortium ? `· ${view.consortium}${view.answers === false ? " · the server does not answer" : ""}` : "");
  alarm(view.fault);
  if (run === null) return;
  put("study", run.study || "No run yet");
  put("where", run.study ? `digest ${run.digest.slice(0, 16)} · ${run.folder}` : run.folder);
  document.title = `${run.history.length}/${run.exchanges} ${run.study || "no run"} – fedgraft`;
  at("verdict").className = `verdict ${run.state}`;
  put("state", run.state);
  const over = run.state === "completed" || run.state === "incomplete";
  put("headline", run.headline || (run.idle_s !== null && !over ? `last sign of life: ${ago(run.idle_s)}` : ""));
  at("progress").max = Math.max(1, run.exchanges);
  at("progress").value = run.history.length;
  put("done", `${run.history.length} of ${run.exchanges}`);
  put("now", over ? "over" : stage(run.stage, run.round, run.rounds));
  const met = run.sites.filter((site) => site.contact);
  const here = met.filter((site) => site.contact === "online").length;
  put("here", met.length ? `${here} of ${met.length}` : String(run.sites.length));
  put("up", size(run.bytes_up));
  put("down", size(run.bytes_down));
  put("privacy", privacy(run));
  put("plain", run.plain.length ? `Without noise, so that no epsilon bounds them: ${run.plain.join(", ")}` : "");
  at("sites").replaceChildren(...run.sites.map((one) => siteRow(run, one)));
  at("rounds").replaceChildren(...run.history.map((one) => roundRow(run, one)).reverse());
  charts(run);
}

function alarm(text) {
  put("alarm", text);
  at("alarm").hidden = text === "";
}

async function poll() {
  try {
    const answer = await fetch("/state", { cache: "no-store" });
    if (answer.status === 401) return location.assign("/login");
    if (!answer.ok) throw new Error(String(answer.status));
    const person = answer.headers.get("Fedgraft-Person");
    put("person", decodeURIComponent(person || ""));
    at("logout").hidden = person === null;
    show(await answer.json());
  } catch {
    alarm("fedgraft server watch does not answer any more; what is shown may be old.");
  }
  setTimeout(poll, POLL_MS);
}

poll();
