// The numbers beside the grid.

const $ = (id) => document.getElementById(id);
const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)}\u00a0%`;
const STAGES = { // of the run's own progress, in the page's words
  adapt: "Learning what is unwanted (stage 1 of 2)",
  repel: "Unlearning (stage 2 of 2)",
};
const interval = ({ low, high }) => `${(100 * low).toFixed(1)} to ${(100 * high).toFixed(1)}\u00a0%`;

export function duration(seconds) {
  if (seconds < 100) return `${Math.max(Math.round(seconds), 1)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

export function size(bytes) {
  return bytes < 1e9 ? `${Math.max(Math.round(bytes / 1e6), 1)} MB` : `${(bytes / 1e9).toFixed(1)} GB`;
}

export function plural(n, word) {
  return `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;
}

export function showPanel(state) {
  for (const [name, count] of Object.entries(state.counts)) set(`count-${name}`, count.toLocaleString("en"));
  set("round", state.round > 1 ? `round ${state.round}` : "");
  set("advice", state.advice);
  showAgreement(state);
  showShare(state);
  showRun(state);
  showJudging(state);
  const all = state.size - state.random;
  set("made", state.made < all ? `${plural(Math.min(state.made, all), "sample")} of ${all.toLocaleString("en")} ready` : "");
}

function showAgreement({ probe, views, fitted }) {
  $("agreement").hidden = !probe;
  $("agreement-none").hidden = Boolean(probe);
  if (!probe) return set("quality", "");
  for (const name of ["recall", "specificity"]) {
    const found = probe[name];
    set(`${name}-of`, String(found.of));
    set(name, found.of ? percent(found.share) : "");
    set(`${name}-interval`, found.of ? interval(found) : "");
  }
  const notes = [];
  const against = views.contradictory?.length ?? 0;
  if (against) notes.push(`${plural(against, "mark")} the others contradict.`);
  if (probe.duplicates) notes.push(`${plural(probe.duplicates, "near-duplicate")}: they add little.`);
  if (!fitted) notes.push("Fitting ...");
  return set("quality", notes.join(" "));
}

function showShare({ verdict, earlier, round }) {
  const n = verdict.marked - verdict.unsure;
  const said = `Of ${plural(n, "random sample")} you called ${verdict.unwanted} unwanted: ${share(verdict)}.`;
  set("share", n ? said : "Mark the Random samples, in order, to learn how many are unwanted.");
  const notes = [];
  if (verdict.unsure) notes.push(`${verdict.unsure} unsure left out.`);
  if (earlier?.share != null) notes.push(`Round ${round - 1}: ${share(earlier)}.`);
  set("share-note", notes.join(" "));
}

const share = (verdict) => `${verdict.share === null ? "–" : percent(verdict.share)} (95\u00a0%: ${interval(verdict)})`;

function showJudging({ judging }) {
  $("judging").hidden = !judging;
  if (!judging) return;
  const { judged, of, revealed } = judging;
  $("judge").hidden = revealed || judged === of;
  $("reveal").hidden = revealed || judged < 2;
  set("judge", judged ? "Go on judging" : "Judge the result");
  const before = judged
    ? `${judged} of ${of} judged. The verdict is shown when you end, and then stays as it is.`
    : "Judge samples of the original and of the result, shuffled, and your verdict goes into the report.";
  set("verdict", revealed ? verdictOf(judging) : before);
}

export function verdictOf({ before, after }) {
  const result = `Of ${plural(after.marked - after.unsure, "random sample")} you called ${after.unwanted} unwanted: ${share(after)}.`;
  return `${result} Before, of ${before.marked - before.unsure}: ${before.unwanted}, ${share(before)}.`;
}

function showRun({ run, cost, counts, marked, round }) {
  const running = run.state === "running";
  const about = cost ? `About ${duration(cost.seconds)} of training, and ${size(cost.bytes)} of memory.` : "";
  set("cost", run.state === "none" || run.state === "stopped" ? about : "");
  $("run").hidden = running || run.state === "finished";
  const bare = round > 1 && marked === 0; // the marks of earlier rounds alone would only repeat the last run
  $("run").disabled = counts.unwanted === 0 || bare;
  if (bare && run.state === "none") set("cost", "Mark what survived, or was damaged, first.");
  set("run", run.state === "none" ? "Unlearn now" : "Go on");
  $("anew").hidden = !["stopped", "failed"].includes(run.state);
  $("stop").hidden = !running;
  $("stop").disabled = Boolean(run.stopping);
  $("run-progress").hidden = !running;
  if (running && run.done !== undefined) $("run-progress").value = run.done;
  else $("run-progress").removeAttribute("value");
  set("run-text", runText(run));
  $("run-text").classList.toggle("quiet", run.state !== "failed");
  set("run-outcome", run.state === "finished" ? outcome(round, run.summary) : "");
  $("report").hidden = $("round-button").hidden = run.state !== "finished";
  $("report").href = `/report/${round}`;
  set("command", run.command);
}

function outcome(round, { before, after, n, judge, verdict }) {
  if (n === undefined) return `Round ${round} is done.`;
  const who = judge === "probe" ? "the probe" : judge;
  return `Round ${round} is done: by ${who}, ${before} of ${plural(n, "sample")} were unwanted before, ${after} now. ${verdict}`;
}

function runText(run) {
  if (run.state === "running") {
    const begun = run.line ? `starting (${run.line})` : "starting";
    const where = run.stage ? `${STAGES[run.stage.split("-")[0]] ?? run.stage}: step ${run.step}` : begun;
    if (run.stopping) return `${where}. It stops once this step is finished and saved.`;
    return `${where}; ${duration(run.seconds)} so far. ${run.done === 1 ? "Evaluating." : ""}`;
  }
  if (run.state === "finished") return `The GAN that it made: ${run.result}. atu export writes it in other formats.`;
  if (run.state === "failed") return `It failed: ${run.line}`;
  return run.state === "stopped" ? "It was stopped, and goes on with the same marks; with others, start over." : "";
}

function set(id, text) {
  const element = $(id);
  if (element.textContent !== text) element.textContent = text;
}
