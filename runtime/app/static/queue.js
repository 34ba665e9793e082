// Buttons of the list: what Python has to know of. Runs inside of Gradio's HTML component.
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-remove]");
  if (button) trigger("remove", { number: Number(button.dataset.remove) });
});
