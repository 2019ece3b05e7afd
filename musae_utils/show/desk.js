// The steering desk of a published page: a choice over sounds that were made beforehand.
(() => {
  if (!window.musaeDesks) {
    const start = (desk) => {
      desk.dataset.live = "1";
      const d = JSON.parse(desk.querySelector("script").textContent);
      const $ = (name) => desk.querySelector(`[data-is="${name}"]`);
      const cell = (tag, text, scope) => {
        const element = document.createElement(tag);
        element.textContent = text;
        if (scope) element.scope = scope;
        return element;
      };
      const load = (audio, sound) => {
        if (audio.src !== sound.data) {
          // The sound changes under the listener's ear, and the place in it stays.
          const [at, runs] = [audio.currentTime, !audio.paused];
          audio.src = sound.data;
          audio.currentTime = at;
          if (runs) audio.play();
        }
        audio.volume = $("matched").checked ? 1 : sound.level;
      };
      const paint = () => {
        const [f, p, s] = ["feature", "prompt", "strength"].map((name) => +$(name).value);
        const plain = d.sounds[d.at[p][f][d.strengths.indexOf("0")]];
        const turned = d.sounds[d.at[p][f][s]];
        const strength = d.strengths[s];
        load($("plain"), plain);
        load($("turned"), turned);
        $("said").textContent = strength;
        $("strength").setAttribute("aria-valuetext", strength);
        $("name").textContent = `2 Feature ${d.features[f]}, strength ${strength}`;
        $("turned").setAttribute("aria-label", `Feature ${d.features[f]}, strength ${strength}`);
        $("values").replaceChildren(...d.names.map((name, i) => {
          const row = document.createElement("tr");
          row.append(cell("th", name.replaceAll("_", " "), "row"), cell("td", plain.values[i]),
            cell("td", turned.values[i]));
          return row;
        }));
        $("status").textContent = `Strength ${strength}: ` + d.names.map((name, i) =>
          `${name.replaceAll("_", " ")} ${turned.values[i]}, untouched ${plain.values[i]}`).join("; ");
      };
      for (const name of ["feature", "prompt", "strength", "matched"]) {
        $(name).addEventListener("input", paint);
      }
      desk.addEventListener("keydown", (event) => {
        if (!/^[12]$/.test(event.key) || event.ctrlKey || event.metaKey || event.altKey) return;
        if (event.target.tagName === "SELECT") return;
        event.preventDefault();
        event.stopPropagation();
        const [other, next] = event.key === "1" ? [$("turned"), $("plain")] : [$("plain"), $("turned")];
        if (!other.paused) next.currentTime = other.currentTime;
        next.play();
      });
      paint();
    };
    window.musaeDesks = () =>
      document.querySelectorAll(".musae-desk:not([data-live]):has(> script)").forEach(start);
  }
  // JupyterLab may run this before the element is on the page.
  for (const wait of [0, 100, 1000]) setTimeout(window.musaeDesks, wait);
  window.musaeDesks();
})();
