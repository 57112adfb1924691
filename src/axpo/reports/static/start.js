// Last of all: every view has said how it is drawn.

readAddress();
showView();
document.documentElement.dataset.ready = "yes";
