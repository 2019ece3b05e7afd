// A listening study on one page. Who hears what, in which order and on which side, follows from the
// listener's code alone; what lies behind a sound is not known here.
(() => {
  "use strict";
  const $ = (id) => document.getElementById(id);
  const source = $("study");
  const study = JSON.parse(source.textContent);
  const place = "musae-listening-" + source.dataset.study;
  const practice = study.practice.length;
  let state = null;
  let plan = [];
  let shown = [];
  let since = 0;

  // Marsaglia's xorshift, started from a hash of the code.
  const draws = (seed) => {
    let s = seed || 1;
    const draw = (n) => {
      s ^= s << 13; s ^= s >>> 17; s ^= s << 5;
      return (s >>> 0) % n;
    };
    for (let i = 0; i < 16; i++) draw(2);
    return draw;
  };
  const seedOf = (text) => {
    let h = 2166136261;
    for (const byte of new TextEncoder().encode(text)) h = Math.imul(h ^ byte, 16777619);
    return h >>> 0;
  };
  const shuffled = (list, draw) => {
    const out = [...list];
    for (let i = out.length - 1; i > 0; i--) {
      const j = draw(i + 1);
      [out[i], out[j]] = [out[j], out[i]];
    }
    return out;
  };
  const planned = (seed) => {
    const draw = draws(seed);
    const order = [...study.practice, ...shuffled(study.trials, draw)];
    return order.map((trial) => ({
      ...trial, sounds: shuffled(trial.sounds, draw), x: trial.kind === "abx" ? draw(2) : null,
    }));
  };

  const read = () => {
    try {
      const kept = JSON.parse(localStorage.getItem(place));
      if (kept && typeof kept.listener === "string" && Array.isArray(kept.answers)
        && Number.isInteger(kept.at) && Number.isInteger(kept.seed)) return kept;
    } catch { /* nothing usable was kept */ }
    return null;
  };
  const keep = () => {
    try {
      localStorage.setItem(place, JSON.stringify(state));
    } catch {
      say("This browser keeps nothing: do all in one go, or save your answers before you close.");
    }
  };

  const say = (text) => { $("hint").textContent = text; };
  const view = (name) => {
    shown.forEach((sound) => sound.audio.pause());
    for (const id of ["intro", "trial", "end"]) $(id).hidden = id !== name;
    scrollTo(0, 0);
  };
  const make = (tag, settings = {}, ...inside) => {
    const element = Object.assign(document.createElement(tag), settings);
    element.append(...inside);
    return element;
  };

  const questions = {
    abx: () => ["Which of them is X?"],
    prefer: (label) => ["Which sounds more like “", label, "”?"],
    rate: (label) => ["How well does “", label, "” fit what you hear?"],
  };
  const ratings = ["not at all", "hardly", "partly", "mostly", "entirely"];

  const sounding = (name, data) => {
    const audio = new Audio("data:audio/mpeg;base64," + data);
    const mark = make("span", { className: "heard" });
    const button = make("button", { type: "button" }, "Play " + name, mark);
    button.setAttribute("aria-pressed", "false");
    const sound = { name, audio, button, heard: false };
    const note = () => {
      button.setAttribute("aria-pressed", String(!audio.paused));
      button.style.setProperty("--done", audio.currentTime / (audio.duration || 1));
      if (!sound.heard && audio.currentTime >= 0.5 * audio.duration) {
        sound.heard = true;
        mark.textContent = " (heard)";
      }
    };
    for (const type of ["play", "pause", "timeupdate", "ended"]) audio.addEventListener(type, note);
    audio.addEventListener("error", () => say(name + " cannot be played by this browser."));
    sound.toggle = () => {
      const start = audio.paused;
      shown.forEach((other) => other.audio.pause());
      audio.currentTime = 0;
      if (start) audio.play();
    };
    button.addEventListener("click", sound.toggle);
    return sound;
  };

  const present = (message = "") => {
    if (state.at >= plan.length) return finish();
    const trial = plan[state.at];
    const letters = trial.sounds.length > 1 ? [..."ABCDEF"].slice(0, trial.sounds.length) : ["A"];
    view("trial");
    shown = letters.map((name, i) => sounding(name, trial.sounds[i].data));
    if (trial.x !== null) shown.push(sounding("X", trial.sounds[trial.x].data));
    const n = state.at - practice + 1;
    const total = plan.length - practice;
    $("where").textContent = n > 0 ? `Trial ${n} of ${total}` : "Practice: does not count";
    $("progress").max = total;
    $("progress").value = Math.max(0, n - 1);
    const label = make("bdi", { textContent: trial.label });
    $("question").replaceChildren(...questions[trial.kind](label));
    $("sounds").replaceChildren(...shown.map((sound) => sound.button));
    const answers = trial.kind === "rate" ? ["1", "2", "3", "4", "5"] : letters;
    $("answers").replaceChildren(
      make("legend", {}, trial.kind === "rate" ? "From 1 to 5" : "Your answer"),
      ...answers.map((name, i) => make(
        "label", {}, make("input", { type: "radio", name: "answer", value: String(i) }),
        trial.kind === "rate" ? `${name}, ${ratings[i]}` : name,
      )),
    );
    const letter = letters.length > 1 ? letters.join(" ") : "A";
    $("which").textContent =
      `${letter}${trial.x === null ? "" : " X"} play, 1 to ${answers.length} answer, Enter goes on`;
    say(message);
    $("question").focus();
    since = performance.now();
  };

  const next = () => {
    const trial = plan[state.at];
    const missing = shown.filter((sound) => !sound.heard).map((sound) => sound.name);
    const answer = document.querySelector("input[name=answer]:checked");
    if (missing.length) return say(`First listen to ${missing.join(" and ")}, at least to half.`);
    if (!answer) return say("First choose an answer.");
    let message = "";
    if (state.at < practice) {
      if (trial.x !== null) message = `In the practice, X was ${"AB"[trial.x]}.`;
    } else {
      const row = {
        trial: trial.id, shown: trial.sounds.map((sound) => sound.id),
        seconds: Math.round(performance.now() - since) / 1000, at: new Date().toISOString(),
      };
      if (trial.x !== null) row.x = trial.sounds[trial.x].id;
      if (trial.kind === "rate") row.rating = +answer.value + 1;
      else row.chosen = trial.sounds[+answer.value].id;
      state.answers.push(row);
    }
    state.at += 1;
    keep();
    present(message);
  };

  const answersSoFar = () => ({
    format: study.answers, study: source.dataset.study, listener: state.listener, seed: state.seed,
    began: state.began, saved: new Date().toISOString(), trials: study.trials.length,
    answers: state.answers,
  });
  const download = () => {
    const text = JSON.stringify(answersSoFar(), null, 1);
    const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    const slug = state.listener.replace(/[^a-z0-9]+/g, "-") || "listener";
    make("a", { href: url, download: `answers-${source.dataset.study}-${slug}.json` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
    $("saved").textContent = "Saved in your downloads. Give the file to whoever asked you.";
  };

  const finish = () => {
    view("end");
    shown = [];
    $("file").textContent = JSON.stringify(answersSoFar(), null, 1);
    $("done").focus();
  };
  const welcome = () => {
    view("intro");
    const kept = (state = read() || state);
    $("kept").hidden = !kept;
    if (kept) {
      $("so-far").textContent = `${kept.listener}: ${kept.answers.length} of `
        + `${study.trials.length} answered in this browser.`;
      $("resume").focus();
    }
  };
  const go = () => {
    plan = planned(state.seed);
    present();
  };

  $("begin").addEventListener("submit", (event) => {
    event.preventDefault();
    let listener = $("code").value.trim().toLowerCase();
    if (!listener) {
      const letters = crypto.getRandomValues(new Uint8Array(6));
      listener = [...letters].map((n) => "bcdfghjkmnpqrstvwxz"[n % 19]).join("");
    }
    const seed = seedOf(source.dataset.study + "/" + listener);
    state = { listener, seed, at: 0, began: new Date().toISOString(), answers: [] };
    keep();
    go();
  });
  $("resume").addEventListener("click", go);
  $("save-some").addEventListener("click", download);
  $("save").addEventListener("click", download);
  $("next").addEventListener("click", next);
  $("pause").addEventListener("click", welcome);
  $("another").addEventListener("click", () => {
    try { localStorage.removeItem(place); } catch { /* nothing was kept */ }
    state = null;
    $("code").value = "";
    $("saved").textContent = "";
    welcome();
    $("code").focus();
  });

  document.addEventListener("keydown", (event) => {
    if ($("trial").hidden || !$("keys").checked) return;
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    const key = event.key.toUpperCase();
    const sound = shown.find((one) => one.name === key);
    const answer = /^[1-9]$/.test(key)
      && document.querySelectorAll("input[name=answer]")[+key - 1];
    if (sound) sound.toggle();
    else if (answer) { answer.checked = true; answer.focus(); }
    else if (key === "ENTER" && event.target.tagName !== "BUTTON") next();
    else return;
    event.preventDefault();
  });
  welcome();
})();
