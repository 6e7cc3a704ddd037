"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  for (const tools of all(".tools")) tools.hidden = false;

  // Groups of buttons of which one is pressed: the scale of the bars, the seed of the images.
  for (const group of all("[data-switch]")) {
    const target = document.getElementById(group.dataset.for);
    const press = (button) => {
      for (const other of all("button", group)) other.setAttribute("aria-pressed", String(other === button));
      const value = button.dataset.value;
      if (group.dataset.switch === "scale") target.dataset.scale = value;
      else for (const zoom of all(".zoom", target)) {
        const images = all("img", zoom);
        const chosen = images.find((image) => image.dataset.seed === value);
        if (chosen) for (const image of images) image.hidden = image !== chosen;
      }
    };
    for (const button of all("button", group)) button.addEventListener("click", () => press(button));
  }

  // Tables that a click on a head sorts: numbers by value, names by their letters, what is missing last.
  for (const table of all("table[data-sortable]")) {
    const heads = all("thead th", table);
    const body = table.tBodies[0];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
        const isName = column === 0;
        const rows = [...body.rows].sort((a, b) => {
          const [x, y] = [key(a), key(b)];
          if (x === "" || y === "") return (x === "") - (y === "");
          const order = isName ? x.localeCompare(y) : Number(x) - Number(y);
          return up ? order : -order;
        });
        body.append(...rows);
      });
    });
  }

  // Images that a click enlarges, with the keys and buttons to the next.
  const dialog = document.getElementById("enlarged");
  if (!dialog) return;
  const picture = dialog.querySelector("img");
  const caption = dialog.querySelector("p");
  let zooms = [];
  let at = 0;
  const show = (index) => {
    at = (index + zooms.length) % zooms.length;
    const image = zooms[at].querySelector("img:not([hidden])");
    picture.src = image.src;
    picture.alt = image.alt;
    caption.textContent = image.alt;
  };
  for (const zoom of all(".zoom")) {
    zoom.addEventListener("click", () => {
      zooms = all(".zoom", zoom.closest(".album"));
      show(zooms.indexOf(zoom));
      dialog.showModal();
    });
  }
  dialog.querySelector("[data-do=before]").addEventListener("click", () => show(at - 1));
  dialog.querySelector("[data-do=after]").addEventListener("click", () => show(at + 1));
  dialog.querySelector("[data-do=close]").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") show(at - 1);
    if (event.key === "ArrowRight") show(at + 1);
  });
})();
