// One sound at a time, and wide tables that a keyboard can scroll.
document.addEventListener("play", (event) => {
  for (const other of document.querySelectorAll("audio")) if (other !== event.target) other.pause();
}, true);

const reach = () => {
  for (const box of document.querySelectorAll(".pst-scrollable-table-container, .cell_output, div.math, pre")) {
    if (box.scrollWidth > box.clientWidth + 1) box.tabIndex = 0;
  }
};
addEventListener("load", reach);
addEventListener("resize", reach);
