// Behaviour of everything in musae_utils.show. Events are caught at the document, so an element
// works however late it arrives; only rolls need a first call. Loaded once however often inlined.
(() => {
  document.documentElement.classList.add("musae-js");
  if (!window.musaeShow) {
    const near = (event, selector) => event.target.closest && event.target.closest(selector);
    const listen = (type, act) => document.addEventListener(type, act, true);

    // One sound at a time.
    listen("play", (event) => {
      if (!near(event, ".musae")) return;
      document.querySelectorAll(".musae audio").forEach((a) => a !== event.target && a.pause());
    });
    listen("change", (event) => {
      const box = near(event, ".musae-choices");
      if (box) box.querySelectorAll("audio").forEach((a) => a.offsetParent || a.pause());
    });

    // A/B: a digit plays that player of the row from the moment the row's other one has reached.
    listen("keydown", (event) => {
      const row = near(event, ".musae-ab tbody tr");
      if (!row || !/^[1-9]$/.test(event.key) || event.ctrlKey || event.metaKey || event.altKey) return;
      const players = [...row.querySelectorAll("audio")];
      const next = players[event.key - 1];
      if (!next) return;
      event.preventDefault();
      const heard = players.find((a) => !a.paused);
      if (heard && heard !== next) next.currentTime = Math.min(heard.currentTime, next.duration || Infinity);
      next.focus();
      next.play();
    });

    const start = (roll) => {
      roll.dataset.live = "1";
      const audio = roll.querySelector("audio");
      const tracks = roll.querySelector(".tracks");
      const frame = roll.querySelector(".frame");
      const head = roll.querySelector(".head");
      const text = roll.querySelector(".now-text");
      const seconds = +roll.dataset.seconds;
      const metre = +roll.dataset.metre;
      const marks = [...roll.querySelectorAll("[data-from]")]
        .map((el) => ({ el, from: +el.dataset.from, to: +el.dataset.to, bar: el.dataset.bar }));
      for (const [name, value] of Object.entries({
        role: "slider", tabindex: 0, "aria-label": "Position in " + roll.dataset.name + ", in seconds",
        "aria-valuemin": 0, "aria-valuemax": seconds.toFixed(1),
      })) tracks.setAttribute(name, value);
      const paint = () => {
        const t = Math.min(audio.currentTime, seconds);
        head.style.left = (100 * t) / seconds + "%";
        const words = [];
        for (const { el, from, to, bar } of marks) {
          const now = t >= from && t < to;
          el.classList.toggle("now", now);
          if (!now) continue;
          const beat = 1 + Math.min(metre - 1, Math.floor((metre * (t - from)) / (to - from) + 1e-6));
          words.push(bar ? "bar " + bar + " beat " + beat : el.title);
        }
        text.textContent = t.toFixed(1) + " s · " + words.join(" · ");
        tracks.setAttribute("aria-valuenow", t.toFixed(1));
        // Read aloud on a move, not sixty times a second.
        if (audio.paused) tracks.setAttribute("aria-valuetext", t.toFixed(1) + " seconds, " + words.join(", "));
        const shown = tracks.offsetLeft + (tracks.offsetWidth * t) / seconds - frame.scrollLeft;
        const names = tracks.offsetLeft;
        if (!audio.paused && (shown < names || shown > frame.clientWidth - 8)) {
          frame.scrollLeft += shown - names - 24;
        }
      };
      const run = () => { paint(); if (!audio.paused && roll.isConnected) requestAnimationFrame(run); };
      audio.addEventListener("play", run);
      for (const type of ["pause", "seeked", "timeupdate"]) audio.addEventListener(type, paint);
      const seek = (t) => { audio.currentTime = Math.max(0, Math.min(seconds - 0.01, t)); paint(); };
      tracks.addEventListener("click", (event) => {
        const box = tracks.getBoundingClientRect();
        seek((seconds * (event.clientX - box.left)) / box.width);
      });
      tracks.addEventListener("keydown", (event) => {
        if (event.ctrlKey || event.metaKey || event.altKey) return;
        const t = audio.currentTime;
        const bars = marks.filter((m) => m.bar).map((m) => m.from);
        const move = {
          ArrowRight: () => seek(t + 1), ArrowUp: () => seek(t + 1),
          ArrowLeft: () => seek(t - 1), ArrowDown: () => seek(t - 1),
          PageUp: () => seek(bars.find((b) => b > t + 0.05) ?? seconds),
          PageDown: () => seek(bars.filter((b) => b < t - 0.05).pop() ?? 0),
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
    // The words come last: without them the browser is still reading the roll in.
    const ready = ".musae-roll:not([data-live]):has(details)";
    window.musaeShow = () => document.querySelectorAll(ready).forEach(start);
  }
  // JupyterLab may run this before the element is on the page.
  for (const wait of [0, 100, 1000]) setTimeout(window.musaeShow, wait);
  window.musaeShow();
})();
