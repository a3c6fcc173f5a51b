(function () {
  var main = document.querySelector("main"), next = main.dataset.next;
  function again() { location.reload(); }
  if (!main.dataset.events || !window.EventSource) { setTimeout(again, main.dataset.refresh * 1000); return; }
  var source = new EventSource(main.dataset.events), failures = 0;
  function take(event) {
    failures = 0;
    var told = JSON.parse(event.data), ready = told.dashboardReady || told.state === "Awake";
    if (ready && next) { source.close(); location.replace(next); return; }
    var changed = told.state !== main.dataset.state || String(Boolean(told.problem)) !== main.dataset.problem;
    if (changed || ready) { source.close(); setTimeout(again, 1000); return; }
    told.parts.forEach(function (part) {
      var item = main.querySelector('[data-part="' + part.name + '"]');
      if (!item) { return; }
      item.className = part.state.toLowerCase();
      item.querySelector(".state").textContent = WORDS[part.state] || part.state;
    });
    if (told.estimatedSeconds && !told.problem) { document.getElementById("words").textContent = "About " + told.estimatedSeconds + " s left. This page goes on by itself."; }
  }
  var WORDS = { Stopped: "asleep", Waiting: "waiting its turn", Stopping: "still stopping", Starting: "starting", Ready: "ready" };
  source.addEventListener("progress", take);
  source.addEventListener("awake", take);
  source.addEventListener("gone", again);
  source.onerror = function () {
    failures += 1;
    // A stream that was refused is never tried again by the browser.
    if (failures > 2 || source.readyState === 2) { source.close(); setTimeout(again, 2000); }
  };
})();
