// One feature on a page: musaeFeature(element, data) draws it and lets it play. The explorer calls it
// for each feature that is looked at, a notebook's cell for the one it holds. `data` is described in
// musae_utils/show/explorer/__init__.py.
(() => {
  if (!window.musaeFeature) {
    // A curve is a string: "#" is 0, each character after it one more, "!" begins a run of zeros.
    const FIRST = 35, LEVELS = 56;
    const unpack = (text) => [...(text || "").replace(/!(.)/g, (_, c) => "#".repeat(c.charCodeAt(0) - FIRST + 4))]
      .map((c) => c.charCodeAt(0) - FIRST);
    const html = (text) => String(text ?? "").replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
    const short = (x) => Number(Number(x).toPrecision(3)).toLocaleString("en");
    const share = (x) => (x > 0 ? `${Number((100 * x).toPrecision(2))}\u00a0%` : "0");
    const KINDS = {
      top: ["Strongest", "by mean activation over the clip, each of another composition"],
      middle: ["Middling", "about half as strong"],
      silent: ["Silent", "it never fires here"],
    };

    const facts = (d) => {
      const often = d.density > 0 ? `1 in ${short(Math.max(1, Math.round(1 / d.density)))}` : "never";
      const why = d.kept ? "rate between 1 % and 25 %" : d.rate > 0.25 ? "rate above 25 %" : "rate below 1 %";
      const items = [
        ["Fires in", `${share(d.density)} of frames`, often],
        ["Rate in a clip", share(d.rate), "mean over clips"],
        ["Fires at all in", `${share(d.share)} of clips`, ""],
        ["Strongest", short(d.peak), d.median > 0 ? `median ${short(d.median)} where it fires` : ""],
        ["S1’s filter", d.kept ? "passes" : "left out", why],
      ];
      return `<dl>${items.map(([name, value, more]) =>
        `<div><dt>${name}</dt><dd>${value}<small>${more}</small></dd></div>`).join("")}</dl>`;
    };

    const follows = (d) => {
      if (!d.follows.length) {
        return `<p class="note">${d.known ? "No planted concept that it follows (AUC 0.6 or more where it was looked for)."
          : "What is in this music is not known, so no concepts are scored."}</p>`;
      }
      const rows = d.follows.map(([name, level, auc]) => {
        const known = auc !== null;
        const wide = known ? Math.max(0, 200 * (auc - 0.5)) : 0;
        return `<tr><td>${html(name)}</td><td>${level}</td><td class="n"><span class="bar" aria-hidden="true">` +
          `<i style="width:${wide.toFixed(0)}%"></i></span>${known ? auc.toFixed(2) : "–"}</td></tr>`;
      });
      return `<table><thead><tr><th scope="col">Concept</th><th scope="col">of a</th>` +
        `<th scope="col">AUC</th></tr></thead><tbody>${rows.join("")}</tbody></table>` +
        `<p class="note">Chosen on one half of the compositions, measured on the other. 0.5 is chance.</p>`;
    };

    const picture = (example, seconds) => {
      const levels = unpack(example.curve);
      const n = example.points;
      let area = "M0 60";
      levels.forEach((v, i) => { area += `V${60 - v}H${i + 1}`; });
      area += `V60H${n}`;
      const runs = (example.holds || []).map(([from, to]) => `M${from} 66h${to - from}v6h${from - to}z`).join("");
      const svg = `<svg viewBox="0 0 ${n} 76" preserveAspectRatio="none" aria-hidden="true">` +
        `<path d="${area}" fill="var(--fill)" fill-opacity=".35" stroke="var(--fill)" stroke-width="1.25"/>` +
        `<path d="${runs}" fill="var(--mark)"/></svg>`;
      return { levels, svg, n, seconds };
    };

    // What the curve shows, for who cannot see it.
    const spoken = (example, drawn) => {
      if (!drawn.levels.some(Boolean)) return "never fires here";
      const at = drawn.levels.indexOf(Math.max(...drawn.levels));
      return `fires in ${share(example.rate)} of frames, strongest at ${((at * drawn.seconds) / drawn.n).toFixed(1)} seconds`;
    };

    const clip = (example, d, index) => {
      const seconds = example.seconds;
      const drawn = picture(example, seconds);
      const words = spoken(example, drawn);
      const strength = example.rate > 0
        ? `mean ${short(example.mean)}, fires in ${share(example.rate)}` : "never fires";
      const sound = example.sound
        ? `<audio controls preload="none" src="${html(example.sound)}" aria-label="${html(example.name)}"></audio>` : "";
      return `<figure class="example" data-example="${index}"><figcaption><b>${html(example.name)}</b>` +
        `<small class="muted">${html(example.caption)}</small><small class="muted">${strength}</small>${sound}</figcaption>` +
        `<div><div class="curve" aria-label="${html(`Activation of feature ${d.id} in ${example.name}: ${words}`)}"` +
        `${sound ? "" : ' role="img"'}>${drawn.svg}${sound ? '<div class="head"></div>' : ""}</div>` +
        `<div class="times" aria-hidden="true"><span>0 s</span><span class="now"></span>` +
        `<span>${seconds.toFixed(seconds % 1 ? 1 : 0)} s</span></div></div></figure>`;
    };

    const clips = (d) => {
      const legend = `<p class="note"><svg viewBox="0 0 22 12" aria-hidden="true"><path d="M1 11V6H6V2H11V8H16V4H21V11z" ` +
        `fill="var(--fill)" fill-opacity=".35" stroke="var(--fill)"/></svg> activation, the same height in all clips` +
        (d.marked ? `; <svg viewBox="0 0 22 12" aria-hidden="true"><path d="M1 4h20v5h-20z" fill="var(--mark)"/></svg> ` +
        `where “${html(d.marked)}” holds` : "") + (d.examples.some((e) => e.sound)
        ? ". Click a curve, or focus it and use the arrow keys, to move; space plays.</p>" : ".</p>");
      const groups = Object.entries(KINDS).map(([kind, [name, about]]) => {
        const mine = d.examples.map((e, i) => (e.kind === kind ? clip(e, d, i) : "")).join("");
        return mine && `<h4>${name} <span class="muted">– ${about}</span></h4>${mine}`;
      });
      return legend + groups.join("");
    };

    const relatives = (d, link) => d.relatives.filter(([, list]) => list.length).map(([title, list]) =>
      `<div><h4>${html(title)}</h4><ol>${list.map(([layer, id, value, words]) => {
        const text = `${id}${words ? ` · ${html(words)}` : ""}`;
        const href = link && link(layer, id);
        return `<li>${href ? `<a href="${html(href)}">${text}</a>` : `<span>${text}</span>`}` +
          `<data value="${value}">${value.toFixed(2)}</data></li>`;
      }).join("")}</ol></div>`).join("");

    const live = (figure, example) => {
      const audio = figure.querySelector("audio");
      if (!audio) return;
      const curve = figure.querySelector(".curve");
      const head = figure.querySelector(".head");
      const now = figure.querySelector(".now");
      const { levels, n, seconds } = picture(example, example.seconds);
      for (const [name, value] of Object.entries({
        role: "slider", tabindex: 0, "aria-valuemin": 0, "aria-valuemax": seconds.toFixed(1),
      })) curve.setAttribute(name, value);
      const paint = () => {
        const t = Math.min(audio.currentTime, seconds);
        const level = levels[Math.min(n - 1, Math.floor((n * t) / seconds))] || 0;
        const words = `${t.toFixed(1)} s · ${Math.round((100 * level) / LEVELS)} % of its strongest`;
        head.style.left = `${(100 * t) / seconds}%`;
        now.textContent = words;
        curve.setAttribute("aria-valuenow", t.toFixed(1));
        // Read aloud on a move, not sixty times a second.
        if (audio.paused) curve.setAttribute("aria-valuetext", words);
      };
      const run = () => { paint(); if (!audio.paused && figure.isConnected) requestAnimationFrame(run); };
      audio.addEventListener("play", () => {
        document.querySelectorAll(".musae audio").forEach((other) => other !== audio && other.pause());
        run();
      });
      for (const type of ["pause", "seeked", "timeupdate"]) audio.addEventListener(type, paint);
      const seek = (t) => { audio.currentTime = Math.max(0, Math.min(seconds - 0.01, t)); paint(); };
      curve.addEventListener("click", (event) => {
        const box = curve.getBoundingClientRect();
        seek((seconds * (event.clientX - box.left)) / box.width);
      });
      curve.addEventListener("keydown", (event) => {
        if (event.ctrlKey || event.metaKey || event.altKey) return;
        const t = audio.currentTime;
        const move = {
          ArrowRight: () => seek(t + 1), ArrowUp: () => seek(t + 1),
          ArrowLeft: () => seek(t - 1), ArrowDown: () => seek(t - 1),
          PageUp: () => seek(t + 5), PageDown: () => seek(t - 5),
          Home: () => seek(0), End: () => seek(seconds),
          " ": () => (audio.paused ? audio.play() : audio.pause()),
        }[event.key];
        if (!move) return;
        event.preventDefault();
        event.stopPropagation();
        move();
      });
      paint();
    };

    window.musaeFeature = (element, d, link) => {
      const near = relatives(d, link);
      element.innerHTML = `<h2 tabindex="-1">Feature ${d.id} <small>layer ${html(d.layer)}</small></h2>` +
        (d.name ? `<p class="label">${html(d.name)}</p>` : "") + facts(d) +
        `<h3>What it follows</h3>${follows(d)}` +
        `<h3>Where it fires</h3>${clips(d)}` +
        (near ? `<h3>Its relatives</h3><div class="relatives">${near}</div>` : "");
      element.querySelectorAll("figure").forEach((figure) => live(figure, d.examples[figure.dataset.example]));
    };
    window.musaeFeature.html = html;
    window.musaeFeature.share = share;
    window.musaeFeature.short = short;
    window.musaeFeatures = () => document.querySelectorAll(".musae-feature > script[type='application/json']").forEach(
      (script) => musaeFeature(script.parentElement, JSON.parse(script.textContent)));
  }
  // JupyterLab may run this before the element is on the page.
  for (const wait of [0, 100, 1000]) setTimeout(window.musaeFeatures, wait);
})();
