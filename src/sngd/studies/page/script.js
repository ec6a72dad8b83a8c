const plots = [...document.querySelectorAll(".plotly-graph-div")];
for (const plot of plots) Plotly.Plots.resize(plot);  // they were drawn before the page had its final width
for (const button of document.querySelectorAll("[data-arm]")) {
  button.addEventListener("click", () => {
    const shown = button.getAttribute("aria-pressed") === "false";
    button.setAttribute("aria-pressed", shown);
    for (const plot of plots) {
      const traces = [...plot.data.keys()].filter(i => plot.data[i].legendgroup === button.dataset.arm);
      if (traces.length) Plotly.restyle(plot, { visible: shown }, traces);
    }
  });
}
for (const button of document.querySelectorAll("[data-axis]")) {
  button.addEventListener("click", () => {
    for (const other of button.parentElement.children) other.setAttribute("aria-pressed", other === button);
    const plot = button.closest(".chart").querySelector(".plotly-graph-div");
    Plotly.relayout(plot, { "yaxis.type": button.dataset.axis, "yaxis.autorange": true });
  });
}
