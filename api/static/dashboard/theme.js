"use strict";
// Before the first picture, so that a page that was chosen dark does not flash.
{
  let theme = null;
  try { theme = localStorage.getItem("vitfit-theme"); } catch { /* storage may be forbidden */ }
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
}
